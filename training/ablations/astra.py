"""ASTRA's Table 4 (section 4.4)."""

from __future__ import annotations

from pathlib import Path

from ..astra import astra
from ..astra_config import ASTRAConfig
from ..flux_config import FIXED
from .flux_study import FluxStudy
from .models import Models
from .table import Ablation, Claim, Row
from .worlds import Sizes, World

FULL = "ASTRA"
SETTINGS = {
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "schedule": "cosine",
    "pose_dropout": 0.0,
    "lora_rank": 16,
    "dsm_width": 64,
    "dsm_heads": 4,
    "dsm_subjects": 4,
    "pose_line_width": 2,
    "timestep_shift": FIXED,  # most of a small picture is decided at high noise
}


def _study(models: Models, sizes: Sizes, encodings: Path) -> FluxStudy:
    return FluxStudy(
        models, World(sizes, "people", people=(1, 2), tested=(2, 2)), encodings, ASTRAConfig, astra, SETTINGS
    )


ABLATION = Ablation(
    name="astra",
    title="ASTRA: retrieval, positions, DSM",
    source="ASTRA, Table 4",
    measures=("pose_error", "limbs_found", "identity", "recognised", "leakage"),
    columns=("OKS", "CLIP-I", "DINO", "CLIP-T"),
    rows=(
        Row(FULL, paper=(0.0452, 0.7087, 0.4457, 0.3194)),
        Row("without retrieval", {"pose_dropout": 1.0}, paper=(0.0095, 0.6815, 0.4173, 0.3061)),
        Row("symmetric RoPE", {"mode": "symmetric RoPE"}, paper=(0.0041, 0.3813, 0.2255, 0.1705)),
        Row("symmetric UnoPE", {"mode": "symmetric UnoPE"}, paper=(0.0076, 0.6028, 0.3591, 0.2876)),
        Row("without DSM", {"dsm": False}, paper=(0.0345, 0.6754, 0.4208, 0.3072)),
    ),
    claims=(
        Claim(FULL, "without retrieval", "pose_error", "OKS"),
        Claim(FULL, "symmetric RoPE", "pose_error", "OKS"),
        Claim(FULL, "symmetric RoPE", "identity", "CLIP-I"),
        Claim(FULL, "symmetric UnoPE", "pose_error", "OKS"),
        Claim(FULL, "symmetric UnoPE", "identity", "CLIP-I"),
        Claim(FULL, "without DSM", "identity", "CLIP-I"),
    ),
    note="Two puppets a test picture, each with a reference; pose maps are the scene's own, as a perfect retrieval would find them,"
    " and the row without retrieval neither learns from them nor is given any.",
    study=_study,
)
