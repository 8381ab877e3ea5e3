"""One-for-All's Table 1 (its own rows) and Table 4 (sections 4.2 and 4.5)."""

from __future__ import annotations

from pathlib import Path

from ..flux_config import FIXED
from ..one_for_all import one_for_all
from ..one_for_all_config import OneForAllConfig
from .flux_study import FluxStudy
from .models import Models
from .table import Ablation, Claim, Row
from .worlds import Sizes, World

FULL = "One-for-All"
CATEGORIES = ("face", "upper garment", "lower garment", "bag")
FEWEST = 3  # subjects of a test picture
SETTINGS = {
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "schedule": "cosine",
    "lora_rank": 16,
    "dam_width": 32,
    "pose_maps": True,
    "pose_line_width": 2,
    "timestep_shift": FIXED,  # most of a small picture is decided at high noise
}


def _study(models: Models, sizes: Sizes, encodings: Path) -> FluxStudy:
    world = World(sizes, "items", people=(1, 1), tested=(1, 1), categories=CATEGORIES, fewest=FEWEST)
    return FluxStudy(
        models,
        world,
        encodings,
        OneForAllConfig,
        lambda model, vae, clip, _, data, config, keep: one_for_all(model, vae, clip, data, config, keep),
        SETTINGS,
    )


ABLATION = Ablation(
    name="one-for-all",
    title="One-for-All: positions, CCPA, DAM",
    source="One-for-All, Tables 1 and 4",
    measures=("identity", "face", "garments", "recognised", "pose_error"),
    columns=("FaceSim", "FashionCLIP-I", "DINO"),
    rows=(
        Row(FULL, paper=(0.678, 0.642, 0.405)),
        Row("without CCPA", {"scheme": "condition ids"}, paper=(0.633, 0.634, 0.394)),
        Row("without DAM", {"dam": False}, paper=(0.619, 0.638, 0.401)),
        Row("condition ids alone", {"scheme": "condition ids", "dam": False}, paper=(0.599, 0.625, 0.392)),
        Row("index embeddings", {"scheme": "index embeddings", "dam": False}, paper=(0.298, 0.623, 0.367)),
        Row("virtual time", {"scheme": "virtual time", "dam": False}, paper=(0.297, 0.613, 0.340)),
    ),
    claims=(
        Claim(FULL, "without CCPA", "identity", "DINO"),
        Claim(FULL, "without CCPA", "garments", "FashionCLIP-I"),
        Claim(FULL, "without DAM", "face", "FaceSim"),
        Claim(FULL, "without DAM", "identity", "DINO"),
        Claim("condition ids alone", "index embeddings", "identity", "DINO"),
        Claim("condition ids alone", "virtual time", "identity", "DINO"),
        Claim(FULL, "condition ids alone", "identity", "DINO"),
    ),
    note="Trained on one thing of a puppet at a time, tested on three or four at once. Unlike in the paper, all rows have a pose"
    " map, because it says where in the picture each thing has to be looked for. *Index embeddings* has all references at"
    " (0, 0, 0), without embeddings of its own.",
    study=_study,
)
