"""How good the trained tiny models are, on puppets and poses that none of them has seen; the figures of their card.

python dev.py python -m devtools.weights_quality [--scenes 24] [--sheet docs/tiny_flux.jpg]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

import comfyui_ensemble.training  # noqa: F401 (tells the host that there may be no accelerator)
from comfyui_ensemble.attention_patches.anystory_file import load_anystory
from comfyui_ensemble.models_info.registry import TINY_ANYSTORY, TINY_SDXL_VAE, TINY_VAE
from comfyui_ensemble.training.ablations.anystory_study import AnyStoryStudy
from comfyui_ensemble.training.ablations.flux_study import CFG
from comfyui_ensemble.training.ablations.models import Models
from comfyui_ensemble.training.ablations.worlds import Case, Sizes, World
from comfyui_ensemble.training.encoding import keep_nothing
from comfyui_ensemble.training.flux_base import FluxBase, FluxBaseConfig
from comfyui_ensemble.training.flux_setup import flux_encoders
from comfyui_ensemble.training.flux_task import Absent
from comfyui_ensemble.training.model import TrainableModel
from comfyui_ensemble.training.puppets import measure

if TYPE_CHECKING:
    from comfy.sd import VAE

STEPS = 20
SHOWN, COLUMNS = 8, 2


def rebuilt(vae: VAE, picture: torch.Tensor) -> torch.Tensor:
    """A picture (H, W, 3) that went through an autoencoder."""
    return vae.decode(vae.encode(picture[None]))[0, ..., :3].clamp(0, 1)


def psnr(vae: VAE, cases: Sequence[Case]) -> float:
    """Peak signal-to-noise ratio of the cases' pictures, a mean, dB."""
    errors = [(rebuilt(vae, case.sample.target) - case.sample.target).square().mean() for case in cases]
    return float(np.mean([-10 * np.log10(float(error)) for error in errors]))


def means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every measure."""
    return {name: float(np.nanmean([each[name] for each in found])) for name in found[0]}


def measures(pictures: Sequence[np.ndarray], cases: Sequence[Case]) -> dict[str, float]:
    """Means over all puppets of the pictures."""
    found = [each for picture, case in zip(pictures, cases, strict=True) for each in measure(picture, case.scene)]
    return means([asdict(each) for each in found])


def show(rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """A table in Markdown; the first row has every measure."""
    names = list(rows[0][1])
    print(f"\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for title, found in rows:
        print(f"| {title} | {' | '.join(f'{found[name]:.2f}' if name in found else '-' for name in names)} |")


def subjects_rows(models: Models, scenes: int, folder: Path) -> list[tuple[str, dict[str, float]]]:
    """What AnyStory adds to the SDXL: pictures from blots of colour and captions that do not say what anybody wears.

    Args:
        folder: for encodings.
    """
    study = AnyStoryStudy(models, Sizes(scenes=scenes, draw_steps=STEPS), folder)
    trained = load_anystory(models.path(TINY_ANYSTORY))
    cases, rows = study.cases(), []
    for name, drawing in (("AnyStory", {}), ("the SDXL alone", {"subjects": False})):
        found = [study.measure(study.draw(trained, drawing, case, case.number), case) for case in cases]
        rows.append((name, means(found)))
    return rows


def sheet(pictures: Sequence[np.ndarray], cases: Sequence[Case]) -> Image.Image:
    """References, the truth, and what was drawn of it, case by case."""
    tiles = []
    for picture, case in zip(pictures, cases, strict=True):
        references = np.concatenate([subject.reference.numpy() for subject in case.sample.subjects])
        tiles.append(np.concatenate([references, case.sample.target.numpy(), picture], axis=1))
    rows = [np.concatenate(tiles[first : first + COLUMNS], axis=1) for first in range(0, len(tiles), COLUMNS)]
    pixels = (np.concatenate(rows) * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=24, help="held-out pictures of two puppets each")
    parser.add_argument("--sheet", type=Path, help="write what the FLUX drew, beside references and truth")
    chosen = parser.parse_args()
    cases = World(Sizes(scenes=chosen.scenes), "people", people=(2, 2), tested=(2, 2)).cases
    models = Models()
    encoders = flux_encoders(models.flux, models.vae, models.clip, None, keep_nothing)
    settings = FluxBaseConfig(picture_steps=STEPS, picture_cfg=CFG, pose_line_width=2)
    task = FluxBase(TrainableModel(models.flux, "frozen"), encoders, settings)
    with torch.no_grad():
        for entry, network in ((TINY_VAE, models.vae), (TINY_SDXL_VAE, models.sdxl_vae)):
            print(f"{entry.name}: {psnr(network, cases):.1f} dB")
        drawn = [encoders.decode(task.draw(task.encode(case.sample, Absent()))).numpy() for case in cases]
        through = [rebuilt(models.vae, case.sample.target).numpy() for case in cases]
    shown = {
        "drawn by the FLUX": drawn,
        "drawn for another scene": [*drawn[1:], drawn[0]],
        "the truth through the autoencoder": through,
    }
    show([(name, measures(pictures, cases)) for name, pictures in shown.items()])
    with tempfile.TemporaryDirectory() as folder:
        show(subjects_rows(models, chosen.scenes, Path(folder)))
    if chosen.sheet is not None:
        sheet(drawn[:SHOWN], cases[:SHOWN]).save(chosen.sheet, quality=90)


if __name__ == "__main__":
    main()
