"""The pictures that a training learns from."""

from __future__ import annotations

from pathlib import Path

import comfy.utils
import folder_paths
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io

from ..training.data import TrainingData
from ..training.errors import TrainingError
from ..training.manifest import manifest_version, read_manifest
from ..training.manifest_rows import stays_inside
from ..training.manifest_source import ManifestSource
from ..training.sample import Source
from .errors import InputError, sentence_or_true
from .types import DATA

PUPPETS = {"puppets: people": "people", "puppets: items": "items"}
SUFFIX = ".jsonl"
MOST_PEOPLE = 4
MIN_RESOLUTION, MAX_RESOLUTION = 32, 2048


class EnsembleTrainingData(io.ComfyNode):
    """Training data out of a manifest, or out of the built-in world of puppets."""

    DISPLAY_NAME = "Training Data"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTrainingData",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="The pictures a training learns from: a manifest of your own, every row of which is checked before the"
            " training begins, or the built-in puppets, which never run out.",
            search_aliases=[
                "dataset",
                "manifest",
                "jsonl",
                "aspect buckets",
                "puppets",
                "fine-tune",
                "LoRA",
                "ensemble",
            ],
            inputs=[
                io.Combo.Input(
                    "manifest",
                    options=[*PUPPETS, *_manifests()],
                    tooltip="A .jsonl file in ComfyUI's input folder or a folder in it, or the built-in puppets: as whole people,"
                    " or their faces, clothes and bags one by one.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=MIN_RESOLUTION,
                    max=MAX_RESOLUTION,
                    step=16,
                    tooltip="Side of the square whose area the target pictures have, in pixels. Pictures of other shapes keep their"
                    " shape and get the same area.",
                ),
                io.Int.Input(
                    "reference_resolution",
                    default=512,
                    min=MIN_RESOLUTION,
                    max=MAX_RESOLUTION,
                    step=16,
                    tooltip="Longer side of every reference, in pixels. Use the same as reference_size on Reference Latents.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    tooltip="Decides the order of the pictures, and which puppets there are. The same seed, the same data.",
                ),
                io.Int.Input(
                    "most_people",
                    default=2,
                    min=1,
                    max=MOST_PEOPLE,
                    optional=True,
                    tooltip="How many puppets a built-in picture shows at most. A manifest's pictures are as they are.",
                ),
                io.Int.Input(
                    "fewest_people",
                    default=1,
                    min=1,
                    max=MOST_PEOPLE,
                    optional=True,
                    tooltip="How many puppets a built-in picture shows at least.",
                ),
                io.Boolean.Input(
                    "looks",
                    default=True,
                    optional=True,
                    tooltip="Whether captions of built-in pictures say what everybody wears. Without, 'a girl' is all, and a model"
                    " must learn from the references who she is, as AnyStory should.",
                ),
            ],
            outputs=[DATA.Output(display_name="data", tooltip="Connect it to a training node.")],
        )

    @classmethod
    def validate_inputs(cls, manifest: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_choice, manifest)

    @classmethod
    def fingerprint_inputs(cls, manifest: str | None = None, **_: object) -> object:
        """Changes when the manifest, or a picture that it names, does."""
        if manifest is None or manifest in PUPPETS or not stays_inside(manifest):
            return None
        return manifest_version(Path(folder_paths.get_input_directory()) / manifest)

    @classmethod
    def execute(
        cls,
        manifest: str,
        resolution: int,
        reference_resolution: int,
        seed: int,
        most_people: int = 2,
        fewest_people: int = 1,
        looks: bool = True,
    ) -> io.NodeOutput:
        if fewest_people > most_people:
            raise InputError(
                cls.DISPLAY_NAME,
                "fewest_people",
                f"it is {fewest_people}, more than most_people, which is {most_people}; lower it",
            )
        try:
            source = _source(
                manifest, resolution, reference_resolution, seed, people=(fewest_people, most_people), looks=looks
            )
            return io.NodeOutput(TrainingData(source, resolution, reference_resolution, seed))
        except TrainingError as error:
            raise InputError(cls.DISPLAY_NAME, error.input_name, str(error)) from None


def _manifests() -> list[str]:
    """The manifests in the input folder and in the folders right below it, with forward slashes."""
    folder = Path(folder_paths.get_input_directory())
    found = [*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/*{SUFFIX}")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _source(
    manifest: str, resolution: int, reference_resolution: int, seed: int, people: tuple[int, int], looks: bool
) -> Source:
    _check_choice(manifest)
    if manifest in PUPPETS:
        from ..training.puppets import PuppetSource  # a dozen modules that no start of ComfyUI needs

        try:
            return PuppetSource(
                seed, (resolution, resolution), reference_resolution, people, PUPPETS[manifest], looks=looks
            )
        except ValueError as error:
            raise InputError(EnsembleTrainingData.DISPLAY_NAME, "most_people", str(error)) from None
    return ManifestSource(read_manifest(Path(folder_paths.get_input_directory()) / manifest, _Progress()))


def _check_choice(manifest: str) -> None:
    if manifest in PUPPETS:
        return
    path = Path(folder_paths.get_input_directory()) / manifest
    if not manifest.endswith(SUFFIX) or not stays_inside(manifest) or not path.is_file():
        there = ", ".join([*PUPPETS, *_manifests()])
        raise InputError(
            EnsembleTrainingData.DISPLAY_NAME,
            "manifest",
            f"there is no manifest '{manifest}' in ComfyUI's input folder; put a {SUFFIX} file there or choose one of: {there}",
        )


class _Progress:
    """Shows how many pictures have been examined, and stops where the user does."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        self.bar = self.bar or comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)


NODES: list[type[io.ComfyNode]] = [EnsembleTrainingData]
