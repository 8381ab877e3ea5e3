"""What the pack's own files take on the disk: rows for ``dev.py bench``."""

from __future__ import annotations

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER
from devtools.bench_row import Row

MB = 1_000_000
PROMISED_POSES = 20.0
PROMISED_WEIGHTS = 60.0


def rows() -> list[Row]:
    """The bundled pose database, and all trained tiny models together."""
    poses = (PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name).stat().st_size
    weights = sum(path.stat().st_size for path in (PACK_FOLDER / "models_info" / "weights").rglob("*.safetensors"))
    return [
        Row("sizes.poses", "the bundled pose database on disk", "MB", poses / MB, PROMISED_POSES, device="any"),
        Row("sizes.weights", "the trained tiny models on disk", "MB", weights / MB, PROMISED_WEIGHTS, device="any"),
    ]
