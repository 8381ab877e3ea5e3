"""The help pages of the training nodes list every setting that their input `config` takes."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import comfyui_ensemble
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from comfyui_ensemble.training.astra_config import ASTRAConfig
from comfyui_ensemble.training.construction.settings import BuildConfig
from comfyui_ensemble.training.one_for_all_config import OneForAllConfig

PAGES = Path(comfyui_ensemble.__file__).parent / comfyui_ensemble.WEB_DIRECTORY / "docs"
CONFIGS: dict[str, Any] = {
    "EnsembleTrainASTRA": ASTRAConfig,
    "EnsembleTrainOneForAll": OneForAllConfig,
    "EnsembleTrainAnyStoryEncoder": AnyStoryEncoderConfig,
    "EnsembleTrainAnyStoryRouter": AnyStoryRouterConfig,
    "EnsembleBuildTrainingData": BuildConfig,
}


def listed(page: str) -> set[str]:
    """The names at the beginning of a page's table rows, and those in code."""
    rows = re.findall(r"^\| ([\w, ]+?)(?: \(optional\))? \|", page, re.MULTILINE)
    return {name for row in rows for name in row.split(", ")} | set(re.findall(r"`(\w+)`", page))


def test_every_node_with_settings_is_known():
    nodes = asyncio.run(comfyui_ensemble.comfy_entrypoint().get_node_list())
    schemas = [node.GET_SCHEMA() for node in nodes]
    taking = {schema.node_id for schema in schemas if "config" in [each.id for each in schema.inputs]}
    assert taking == set(CONFIGS)


@pytest.mark.parametrize("node", CONFIGS)
def test_a_page_lists_every_setting(node: str):
    page = (PAGES / f"{node}.md").read_text(encoding="utf-8")
    assert {field.name for field in dataclasses.fields(CONFIGS[node])} <= listed(page)
