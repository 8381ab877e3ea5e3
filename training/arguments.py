"""What the trainers' commands have in common: which models, which data."""

from __future__ import annotations

import argparse
from pathlib import Path

from .config import TrainingConfig
from .data import TrainingData
from .encoding import Keep, keep_in_folder
from .errors import TrainingError
from .manifest import read_manifest
from .manifest_source import ManifestSource
from .models import MINILM
from .puppets import KeptSamples, PuppetSource
from .puppets.source import KINDS
from .sample import Source

PUPPETS = "puppets"
MOST_KEPT = 20_000  # pictures of puppets that are drawn once and held in memory, 2 GB at 128 pixels
_MODELS = {
    "model": "the diffusion model, or a checkpoint",
    "vae": "its VAE, or a checkpoint",
    "clip": f"its text encoders, a checkpoint, or the word {MINILM}",
    "clip_vision": "the CLIP vision encoder",
}


def add_model_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Required arguments for some of "model", "vae", "clip" (one file or several) and "clip_vision", as paths."""
    for name in names:
        option = f"--{name.replace('_', '-')}"
        if name == "clip":
            parser.add_argument(option, nargs="+", required=True, metavar="FILE", help=_MODELS[name])
        else:
            parser.add_argument(option, type=Path, required=True, metavar="FILE", help=_MODELS[name])


def add_data_arguments(parser: argparse.ArgumentParser, resolution: int, reference_resolution: int) -> None:
    """Arguments that `load_data` reads; the numbers are defaults, in pixels."""
    parser.add_argument("--data", required=True, help=f"a manifest (JSONL), or the word {PUPPETS}")
    parser.add_argument("--resolution", type=int, default=resolution, help="side of a square of a target's area")
    parser.add_argument(
        "--reference-resolution", type=int, default=reference_resolution, help="longer side of a reference"
    )
    parser.add_argument(
        "--puppets-kind", choices=KINDS, default=KINDS[0], help="what the subjects of the puppets' pictures are"
    )
    parser.add_argument("--puppets-without-looks", action="store_true", help="captions say a girl, not what she wears")
    parser.add_argument("--puppets-people", type=int, nargs=2, default=(1, 2), metavar=("FEWEST", "MOST"))
    parser.add_argument("--puppets-count", type=int, help="different pictures of puppets; endless without it")
    parser.add_argument("--puppets-seed", type=int, default=0)


def add_keep_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that `load_keep` reads."""
    parser.add_argument(
        "--encodings",
        type=Path,
        metavar="FOLDER",
        help="keep encoded pictures and captions there: for later starts, and for more of them than memory holds",
    )


def load_keep(chosen: argparse.Namespace) -> Keep | None:
    """How encodings are kept as the arguments ask for it; None where they do not.

    Raises:
        TrainingError: they cannot be kept in what is given.
    """
    if chosen.encodings is None:
        return None
    try:
        chosen.encodings.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"--encodings {chosen.encodings}: there can be no such folder ({error.strerror}); give another one, or leave"
            " --encodings out"
        ) from None
    return keep_in_folder(chosen.encodings)


def load_data(chosen: argparse.Namespace, config: TrainingConfig) -> TrainingData:
    """The data that the arguments ask for, in the order of the configuration's seed.

    Raises:
        TrainingError: there is no such data, or a row of it will not do.
    """
    return TrainingData(
        _source(chosen), chosen.resolution, chosen.reference_resolution, config.seed, config.augment_references
    )


def _source(chosen: argparse.Namespace) -> Source:
    if chosen.data == PUPPETS:
        puppets = PuppetSource(
            seed=chosen.puppets_seed,
            size=(chosen.resolution, chosen.resolution),
            reference_size=chosen.reference_resolution,
            people=tuple(chosen.puppets_people),
            kind=chosen.puppets_kind,
            count=chosen.puppets_count,
            looks=not chosen.puppets_without_looks,
        )
        return KeptSamples(puppets, range(len(puppets))) if len(puppets) <= MOST_KEPT else puppets
    path = Path(chosen.data)
    if not path.is_file():
        raise TrainingError(f"--data: there is no file {path}; give a manifest, or the word {PUPPETS}", "data")
    return ManifestSource(read_manifest(path))
