"""The work for the server: the bundled workflows made small, and short ones of stock nodes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from devtools.workflow_sources import WORKFLOWS

Prompt = dict[str, Any]

LENGTHS = ("width", "height", "cell_width", "cell_height", "reference_size")
OFFSETS = ("x", "y")
SIDE_STEP = 16  # every bundled model takes pictures of multiples of it
SMALLEST_SIDE = 64
REPORT = "report_"
SEEDS = ("seed", "noise_seed")
# As small as the tiny AnyStory; the paper's own sizes make 200 million weights, most of them in the QFormers.
SMALL_ANYSTORY = {
    "queries": 5,
    "qformer_width": 32,
    "qformer_heads": 2,
    "qformer_layers": 1,
    "router_width": 128,
    "reference_size": 64,
}
# PyTorch's half-precision kernels on a CPU keep a compiled one for every new shape, 50 MiB in a run of two steps, until its
# own cache is full. That would hide what a training keeps.
SMALL_TRAINING = {"precision": "fp32"}


def bundled(name: str) -> Prompt:
    """A bundled workflow in API form."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def bundled_names() -> list[str]:
    """All of them."""
    return sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


def small(prompt: Prompt, steps: int = 2, scale: float = 0.5) -> Prompt:
    """The same workflow with few steps and small pictures; everything in it keeps its place."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                continue
            if name in LENGTHS:
                node["inputs"][name] = max(SMALLEST_SIDE, round(value * scale / SIDE_STEP) * SIDE_STEP)
            elif name in OFFSETS:
                node["inputs"][name] = round(value * scale / SIDE_STEP) * SIDE_STEP
            elif name == "steps":
                node["inputs"][name] = steps
            elif name == "step":
                node["inputs"][name] = min(value, steps - 1)
            elif name == "config":
                network = SMALL_ANYSTORY if node["class_type"] == "EnsembleTrainAnyStoryEncoder" else {}
                node["inputs"][name] = json.dumps({**json.loads(value), **network, **SMALL_TRAINING, "steps": steps})
    return prompt


def short_invert() -> Prompt:
    """Loads, inverts and saves a picture."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "ensemble_alice.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "ensemble/invert"}},
    }


def short_pose() -> Prompt:
    """Finds a pose and draws it."""
    return {
        "1": {"class_type": "EnsemblePoseDatabaseLoader", "inputs": {"database": "ensemble_poses.safetensors"}},
        "2": {
            "class_type": "EnsemblePoseRetriever",
            "inputs": {"pose_db": ["1", 0], "prompt": "a man waving", "threshold": 0.0, "rank": 1},
        },
        "3": {
            "class_type": "EnsemblePoseRender",
            "inputs": {"pose": ["2", 0], "width": 256, "height": 256, "line_width": 4},
        },
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "ensemble/pose"}},
    }


def short_sheet() -> Prompt:
    """A cast of two on a sheet."""
    prompt = {
        "3": {"class_type": "EnsembleCastSheet", "inputs": {"cast": ["6", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "ensemble/sheet"}},
    }
    for picture, subject, name in (("1", "2", "alice"), ("5", "6", "bruno")):
        prompt[picture] = {"class_type": "LoadImage", "inputs": {"image": f"ensemble_{name}.png"}}
        inputs = {"image": [picture, 0], "name": name, "description": "", "category": "person"}
        prompt[subject] = {"class_type": "EnsembleSubject", "inputs": inputs}
    prompt["6"]["inputs"]["cast"] = ["2", 0]
    return prompt


SHORT: dict[str, Callable[[], Prompt]] = {
    "short_invert": short_invert,
    "short_pose": short_pose,
    "short_sheet": short_sheet,
}


def kinds(steps: int = 2) -> dict[str, Prompt]:
    """Every kind of work by its name: the bundled workflows, small, and the short ones."""
    return {name: small(bundled(name), steps) for name in bundled_names()} | {n: make() for n, make in SHORT.items()}


def job(prompt: Prompt, name: str, seed: int) -> Prompt:
    """A kind as one piece of work: another seed, and everything that it writes begins with `name`."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        for key in SEEDS:
            if key in inputs:
                inputs[key] = seed
        if "filename_prefix" in inputs:
            inputs["filename_prefix"] = f"{name}/{inputs['filename_prefix'].rpartition('/')[2]}"
        if node["class_type"] in ("EnsembleSaveWeights", "EnsemblePoseDatabaseSave"):
            inputs["name"] = name
        if node["class_type"] == "EnsembleEvaluationReport":
            inputs["name"] = f"{REPORT}{name}"
        if "config" in inputs:
            settings = json.loads(inputs["config"])
            inputs["config"] = json.dumps({**settings, "run": f"{name}_{settings['run']}"})
    return prompt


def rounds(names: list[str], count: int, seed: int, last: str) -> list[list[str]]:
    """`count` pieces of work in rounds of every kind once, each in an order of its own, `last` always at the end.

    The rounds are alike but for their order, and leave the same work in the host's cache, so that they can be compared.
    """
    generator = random.Random(seed)
    others = [name for name in names if name != last]
    made: list[list[str]] = []
    while sum(map(len, made)) < count:
        left = count - sum(map(len, made))
        made.append([*generator.sample(others, min(len(others), left - 1)), last])
    return made
