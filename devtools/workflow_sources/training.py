"""Training: one small workflow for each system, which learns from the built-in puppets."""

from __future__ import annotations

import json
from typing import Any

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import tiny_models, tiny_sdxl_models

VISION = Node("vision", "EnsembleTinyCLIPVision", 0)

OWN_TRAINING = """**A short run on the tiny models**: it shows how the nodes go together. So few steps change hardly anything.

**A training of your own**
- your models in the loaders, your pictures in *Training Data* (a `.jsonl` manifest; its help page says how to write
  one, and *Build Training Data* makes one from a folder of pictures)
- resolution 1024, reference_resolution 512
- **config** emptied: everything is then as in the paper. Put in what you want otherwise, for example
  `{"run": "my_cast", "steps": 5000, "precision": "bf16", "gradient_checkpointing": true}`

Checkpoints, log and sample pictures lie in `output/ensemble_training/<run>`. Stopped runs go on where they were when the same
run is queued again. From an API client or a terminal it runs without the page.
"""


def data(kind: str, **inputs: Any) -> Node:
    """The built-in puppets, small."""
    small = {"manifest": f"puppets: {kind}", "resolution": 96, "reference_resolution": 64, "seed": 0}
    return Node("data", "EnsembleTrainingData", 0, {**small, **inputs})


def training(key: str, node: str, column: int, config: dict[str, Any], **inputs: Any) -> Node:
    """A training node with its configuration as JSON."""
    return Node(key, node, column, {**inputs, "data": Link("data"), "config": json.dumps(config)})


def results(column: int, key: str, name: str) -> list[Node]:
    """The weights as files, the loss as a picture."""
    return [
        Node("weights", "EnsembleSaveWeights", column, {"weights": Link(key), "name": name}),
        Node(
            "plot",
            "SaveImage",
            column,
            {"images": Link(key, 1), "filename_prefix": f"ensemble/{name}_loss"},
            title="Loss",
        ),
    ]


def models(*names: str) -> dict[str, Link]:
    """The inputs that a training takes from the loaders."""
    return {name: Link("vision" if name == "clip_vision" else "unet" if name == "model" else name) for name in names}


TRAIN_ASTRA = Workflow(
    name="train_astra",
    columns=("1. Models and data", "2. Training", "3. Files"),
    nodes=[
        *tiny_models(0),
        VISION,
        data("people"),
        training(
            "train",
            "EnsembleTrainASTRA",
            1,
            {"run": "train_astra", "steps": 8, "batch_size": 2, "lora_rank": 16, "learning_rate": 0.001},
            **models("model", "vae", "clip", "clip_vision"),
        ),
        *results(2, "train", "my_astra"),
    ],
    notes=[Note(1, "Training", OWN_TRAINING, 420)],
)

TRAIN_ONE_FOR_ALL = Workflow(
    name="train_one_for_all",
    columns=("1. Models and data", "2. Training", "3. Files"),
    nodes=[
        *tiny_models(0),
        data("items"),
        training(
            "train",
            "EnsembleTrainOneForAll",
            1,
            {"run": "train_one_for_all", "steps": 8, "batch_size": 2, "lora_rank": 16, "learning_rate": 0.001},
            **models("model", "vae", "clip"),
        ),
        *results(2, "train", "my_one_for_all"),
    ],
    notes=[Note(1, "Training", OWN_TRAINING, 420)],
)

TRAIN_ANYSTORY = Workflow(
    name="train_anystory",
    columns=("1. Models and data", "2. Stage 1: encoder", "3. Stage 2: router", "4. Files"),
    nodes=[
        *tiny_sdxl_models(0),
        VISION,
        data("people", looks=False),
        training(
            "encoder",
            "EnsembleTrainAnyStoryEncoder",
            1,
            {"run": "train_anystory_encoder", "steps": 4, "batch_size": 1, "learning_rate": 0.001},
            **models("model", "vae", "clip", "clip_vision"),
        ),
        training(
            "router",
            "EnsembleTrainAnyStoryRouter",
            2,
            {"run": "train_anystory_router", "steps": 4, "batch_size": 1, "learning_rate": 0.001},
            **models("model", "vae", "clip", "clip_vision"),
            anystory=Link("encoder"),
        ),
        *results(3, "router", "my_anystory"),
    ],
    notes=[Note(1, "Training", OWN_TRAINING, 420)],
)

WORKFLOWS = (TRAIN_ASTRA, TRAIN_ONE_FOR_ALL, TRAIN_ANYSTORY)
