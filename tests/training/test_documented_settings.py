"""Every setting of every training stands in the documentation, with the default that it has."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import comfyui_ensemble
from comfyui_ensemble.training.config import FREE_TO_CHANGE
from comfyui_ensemble.training.construction.settings import BuildConfig
from comfyui_ensemble.training.trainers import TRAINERS

DOCS = Path(comfyui_ensemble.__file__).parent / "docs"
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| (\S.*) \|$", re.MULTILINE)


def documented(trainer: str) -> dict[str, Any]:
    """The settings in the tables whose headings name a trainer, or all trainings, with their defaults."""
    _, _, chapter = (DOCS / "training.md").read_text(encoding="utf-8").partition("\n## Settings\n")
    found: dict[str, Any] = {}
    for section in chapter.partition("\n## ")[0].split("\n### ")[1:]:
        heading, _, table = section.partition("\n")
        if heading == "All trainings" or f"`{trainer}`" in heading:
            found |= {name: json.loads(default) for name, default, _ in ROW.findall(table)}
    return found


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_setting_is_documented_with_its_default(trainer: str) -> None:
    defaults = json.loads(json.dumps(dataclasses.asdict(TRAINERS[trainer].config())))
    assert documented(trainer) == defaults


def test_what_may_change_on_resumption_is_documented() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    said = re.search(r"are not those of the run; ([^.]*) may change", text)
    assert said and set(re.findall(r"`(\w+)`", said[1])) == FREE_TO_CHANGE


def test_every_setting_of_a_construction_is_documented() -> None:
    text = (DOCS / "construction.md").read_text(encoding="utf-8")
    assert {field.name for field in dataclasses.fields(BuildConfig)} <= set(re.findall(r"`(\w+)`", text))
