"""The recipes say what is true: their example runs in a real ComfyUI, what they link to and name is there."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch

import comfyui_ensemble
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig
from comfyui_ensemble.training.astra_config import ASTRAConfig
from comfyui_ensemble.training.one_for_all_config import OneForAllConfig
from devtools.reliability.workload import bundled, small
from devtools.server import ComfyServer
from devtools.workspace import PACKAGE

PACK = Path(comfyui_ensemble.__file__).resolve().parent
RECIPES = PACK / "docs" / "recipes"
PAGES = sorted([*RECIPES.glob("*.md"), PACK / "docs" / "reliability.md"])
RESEARCHERS = (RECIPES / "researchers.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```(?:python|markdown)\n(?:# |<!-- )(?P<path>\S+\.(?:py|md))(?: -->)?\n(?P<text>.*?)^```$", re.M | re.S
)
EXAMPLE = {match["path"]: match["text"] for match in BLOCK.finditer(RESEARCHERS)}
MECHANISM, NODE, HELP, TEST = (
    "attention_patches/reference_gain.py",
    "nodes/reference_gain.py",
    "web/docs/EnsembleReferenceGain.md",
    "tests/attention_patches/test_reference_gain.py",
)


def load(path: str, folder: Path) -> ModuleType:
    """A file of the example, as if it lay in the pack."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(EXAMPLE[path], encoding="utf-8")
    name = f"{PACKAGE}.{path.removesuffix('.py').replace('/', '.')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The example's modules, for as long as this file's tests run."""
    before = set(sys.modules)
    folder = tmp_path_factory.mktemp("example")
    yield {path: load(path, folder) for path in (MECHANISM, NODE, TEST)}
    for name in set(sys.modules) - before:
        if "reference_gain" in name:
            del sys.modules[name]


def test_the_example_is_whole():
    assert set(EXAMPLE) == {MECHANISM, NODE, HELP, TEST}
    assert EXAMPLE[MECHANISM].count("\n") < 250


NAMES = re.findall(r"^def (test_\w+)", EXAMPLE[TEST], re.M)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_s_own_tests_pass(example, request: pytest.FixtureRequest, name: str):
    function = getattr(example[TEST], name)
    assert "assert" in inspect.getsource(function)  # it looks at something, and raises where that is wrong
    function(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(function).parameters})


def test_the_example_composes_with_the_pack_s_own_patches(example, flux, clip):
    """In either order, with another patch of the queries."""
    apply, paint = example[MECHANISM].apply_reference_gain, example[TEST].paint

    def halve(model):
        patched = model.clone()
        patched.set_model_patch(lambda q, k, v, pe, attn_mask, extra_options: {"q": q / 2}, "attn1_patch")
        return patched

    one, other = (paint(model, clip, references=2) for model in (apply(halve(flux), 3.0), halve(apply(flux, 3.0))))
    assert torch.equal(one, other) and not torch.equal(one, paint(halve(flux), clip, references=2))


@pytest.fixture(scope="module")
def extended_server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with a copy of the pack, to which the page's steps were done."""
    folder = tmp_path_factory.mktemp("extended")
    pack = folder / "custom_nodes" / PACKAGE
    for name in (
        "__init__.py",
        "attention_patches",
        "models_info",
        "nodes",
        "pose_db",
        "training",
        "evaluation",
        "batch",
        "web",
    ):
        copy = shutil.copytree if (PACK / name).is_dir() else shutil.copy
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        copy(PACK / name, pack / name)
    for path in (MECHANISM, NODE, HELP):
        (pack / path).write_text(EXAMPLE[path], encoding="utf-8")
    extension = pack / "nodes" / "extension.py"
    lines = extension.read_text(encoding="utf-8")
    assert lines.count("    flux,\n") == 2  # in the imports and in `families`
    extension.write_text(re.sub(r"^( +)flux,$", r"\1flux,\n\1reference_gain,", lines, flags=re.M), encoding="utf-8")
    arguments = [] if torch.accelerator.is_available() else ["--cpu"]
    models = Path(shutil.copytree(tiny_models, folder / "models"))
    with ComfyServer(folder, models, custom_nodes=pack.parent, arguments=arguments) as server:
        yield server


def test_the_example_s_node_runs_on_a_server(extended_server: ComfyServer):
    info = extended_server.get("/object_info/EnsembleReferenceGain")["EnsembleReferenceGain"]
    assert info["display_name"] == "Reference Gain" and info["category"] == "ensemble/flux"
    prompt = small(bundled("astra_pose_and_identity"))
    prompt["gain"] = {"class_type": "EnsembleReferenceGain", "inputs": {"model": ["22", 0], "gain": 2.0}}
    prompt["25"]["inputs"]["model"] = ["gain", 0]
    assert prompt["22"]["class_type"] == "EnsembleEURoPE" and extended_server.run(prompt)["outputs"]["27"]["images"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).resolve().exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path):
    """What stands between backticks and looks like a file of the pack is one."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    names = re.findall(r"`((?:attention_patches|pose_db|nodes|training|tests|devtools|docs|web)/[\w/.-]+\.\w+)`", text)
    missing = [name for name in names if not (PACK / name).exists()]
    assert not missing


def test_the_researchers_table_names_real_files():
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|[^|]*\|$", RESEARCHERS.partition("## Train")[0], re.M)
    names = [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)]
    assert len(names) > 12
    assert all((PACK / name).exists() or (PACK / "attention_patches" / name).exists() for name in names)


def test_every_bundled_workflow_has_its_recipe():
    text = (RECIPES / "artists.md").read_text(encoding="utf-8")
    workflows = sorted(path.stem for path in (PACK / "workflows" / "api").glob("*.json"))
    assert sorted(re.findall(r"^### `(\w+)`", text, re.M)) == workflows


def sources() -> str:
    """All of the pack's own code, with strings that are broken over lines joined."""
    folders = ("attention_patches", "models_info", "nodes", "pose_db", "training")
    text = "".join(file.read_text(encoding="utf-8") for folder in folders for file in (PACK / folder).rglob("*.py"))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_quoted_messages_are_said_somewhere():
    text = (RECIPES / "artists.md").read_text(encoding="utf-8")
    quoted = [part for line in re.findall(r'^\| "([^"|]+)" \|', text, re.M) for part in line.split("...")]
    code = sources()
    parts = [part.strip() for part in quoted if part.strip()]
    assert len(parts) > 6 and [part for part in parts if part not in code] == []


def test_knobs_are_inputs_or_settings(server: ComfyServer):
    text = (RECIPES / "artists.md").read_text(encoding="utf-8")
    knobs = {
        word
        for line in re.findall(r"^\*\*Knobs\*\*.*?(?:\n\n|\Z)", text, re.M | re.S)
        for word in re.findall(r"`([a-z_]+)`", line)
    }
    info = server.get("/object_info")
    known = {
        name for node in info.values() for group in node["input"].values() if isinstance(group, dict) for name in group
    }
    settings = {
        field.name for config in (ASTRAConfig, OneForAllConfig, AnyStoryEncoderConfig) for field in fields(config)
    }
    workflows = {path.stem for path in (PACK / "workflows" / "api").glob("*.json")}
    assert len(knobs) > 15 and knobs - known - settings - workflows - {"person", "dress"} == set()
