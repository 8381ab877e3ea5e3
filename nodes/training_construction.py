"""Training data out of pictures: captions with boxes, pictures of the same subject, and a folder's whole construction.

What constructs is imported where it is used: dozens of modules that no start of ComfyUI needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models_info.files import is_file_name
from ..models_info.registry import (
    CAPTIONERS,
    FLORENCE,
    OPENPOSE_BODY,
    MissingModelError,
    find_openpose,
    list_folders,
)
from ..training.construction.settings import BuildConfig, read_build_config
from ..training.errors import TrainingError
from .errors import InputError, require_packages, require_text, sentence_or_true
from .notes import with_note
from .types import SAM

if TYPE_CHECKING:
    from ..training.construction.build import Built
    from ..training.construction.captioners import FlorenceCaptioner

BESIDE = "files beside the pictures"  # what the choice `FILES` is called in the page
Result = TypeVar("Result")


class EnsembleCaptionBoxes(io.ComfyNode):
    """Describes pictures."""

    DISPLAY_NAME = "Caption with Boxes"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleCaptionBoxes",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Captions a picture and finds what the caption speaks of: a box for every person and thing, and what"
            " kind of thing it is.",
            search_aliases=[
                "Florence-2",
                "caption",
                "phrase grounding",
                "object detection",
                "ASTRA",
                "dataset",
                "ensemble",
            ],
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch."),
                io.Combo.Input(
                    "captioner",
                    options=list_folders(CAPTIONERS),
                    tooltip=f"A folder of models/{CAPTIONERS} with a Florence-2 model, from {FLORENCE.source}.",
                ),
                io.Float.Input(
                    "smallest",
                    default=BuildConfig.min_subject,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the picture's area that a box must have.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="caption", is_output_list=True, tooltip="One a picture."),
                io.BoundingBox.Output(
                    display_name="boxes", tooltip="All boxes, picture by picture; for SAM Segment or Draw BBoxes."
                ),
                io.String.Output(
                    display_name="table",
                    is_output_list=True,
                    tooltip="One a picture: the category and words of every box.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, captioner: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(lambda name: _captioner(cls.DISPLAY_NAME, name), captioner)

    @classmethod
    def execute(cls, image: torch.Tensor, captioner: str, smallest: float = BuildConfig.min_subject) -> io.NodeOutput:
        from ..training.construction.items import find_items
        from ..training.construction.steps import ItemError

        model = _captioner(cls.DISPLAY_NAME, captioner)
        progress = comfy.utils.ProgressBar(len(image))
        captions, boxes, tables = [], [], []
        for number, picture in enumerate(image[..., :3], start=1):
            throw_exception_if_processing_interrupted()
            try:
                described = _spoken(cls.DISPLAY_NAME, lambda picture=picture: model.describe(Path(), picture))
            except ItemError as error:
                raise InputError(cls.DISPLAY_NAME, "image", f"picture {number}: {error}; leave it out") from None
            items, _ = find_items(described, picture.shape[1], picture.shape[0], smallest)
            captions.append(described.caption)
            tables.append("\n".join(f"{item.category}: {item.words}" for item in items))
            boxes.append([_as_host_box(item.box, item.words) for item in items])
            progress.update(1)
        return io.NodeOutput(captions, boxes, tables)


def _captioner(node: str, name: str) -> FlorenceCaptioner:
    from ..training.construction.captioners import FlorenceCaptioner, find_captioner

    found = _spoken(node, lambda: find_captioner(name))
    if not isinstance(found, FlorenceCaptioner):
        raise InputError(node, "captioner", f"'{name}' is no model; choose a folder of models/{CAPTIONERS}")
    return found


def _spoken(node: str, act: Callable[[], Result]) -> Result:
    """What `act` gives; where the construction cannot go on, an `InputError` says why."""
    try:
        return act()
    except TrainingError as error:
        raise InputError(node, error.input_name, str(error)) from None


def _as_host_box(box: tuple[float, float, float, float], words: str) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"x": left, "y": top, "width": right - left, "height": bottom - top, "label": words, "score": 1.0}


class EnsembleSameSubjectPairs(io.ComfyNode):
    """Finds pictures of the same subject."""

    DISPLAY_NAME = "Same-Subject Pairs"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSameSubjectPairs",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Which of many pictures show the same person or thing? Each pair are mutual nearest neighbours in CLIP;"
            " copies of one picture are no pair.",
            search_aliases=[
                "One-for-All",
                "pair mining",
                "mutual nearest neighbours",
                "duplicates",
                "CLIP-I",
                "ensemble",
            ],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="Crops of subjects: a list of pictures, or batches. At least two."),
                io.ClipVision.Input("clip_vision", tooltip="The encoder whose likeness counts."),
                io.Float.Input(
                    "threshold",
                    default=BuildConfig.pair_similarity,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The lowest cosine of two pictures of one subject.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=BuildConfig.neighbours,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="How many nearest neighbours of a picture may be pairs with it.",
                ),
                io.Float.Input(
                    "duplicates",
                    default=BuildConfig.duplicates,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    optional=True,
                    advanced=True,
                    tooltip="From this correlation on, two pictures count as copies of one. 1 lets copies be pairs.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="first", is_output_list=True, tooltip="One picture of each pair."),
                io.Image.Output(
                    display_name="second", is_output_list=True, tooltip="The other one, in the same order."
                ),
                io.String.Output(display_name="table", tooltip="The numbers of each pair and their similarity."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Sequence[torch.Tensor],
        clip_vision: Sequence[ClipVisionModel],
        threshold: Sequence[float],
        neighbours: Sequence[int] = (BuildConfig.neighbours,),
        duplicates: Sequence[float] = (BuildConfig.duplicates,),
    ) -> io.NodeOutput:
        from ..training.construction.mining import same_subject_pairs, thumbnail
        from ..training.construction.models import Vision

        pictures = [picture[None, ..., :3] for batch in image for picture in batch]
        if len(pictures) < 2:
            raise InputError(cls.DISPLAY_NAME, "image", "it is a single picture; connect a list or a batch of them")
        vision = Vision(clip_vision[0])
        progress = comfy.utils.ProgressBar(len(pictures))
        embeddings = []
        for picture in pictures:
            throw_exception_if_processing_interrupted()
            embeddings.append(vision.embedding(picture[0], torch.ones(picture.shape[1:3])))
            progress.update(1)
        pairs = same_subject_pairs(
            torch.stack(embeddings),
            torch.arange(len(pictures)),
            torch.stack([thumbnail(picture[0]) for picture in pictures]).cpu(),
            threshold[0],
            neighbours[0],
            duplicates[0],
        )
        if not pairs:
            raise InputError(cls.DISPLAY_NAME, "threshold", f"no two pictures reach {threshold[0]:g}; lower it")
        table = "\n".join(f"{pair.first + 1}, {pair.second + 1}: {pair.similarity:.3f}" for pair in pairs)
        firsts, seconds = [pictures[pair.first] for pair in pairs], [pictures[pair.second] for pair in pairs]
        return io.NodeOutput(firsts, seconds, table)


class EnsembleBuildTrainingData(io.ComfyNode):
    """Makes training data out of a folder of pictures."""

    DISPLAY_NAME = "Build Training Data"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleBuildTrainingData",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Turns a folder of pictures into training data: captions, boxes, masks, poses, references, and pairs of"
            " pictures that show the same subject. Stop it whenever you like: it goes on where it was.",
            search_aliases=[
                "dataset",
                "data construction",
                "manifest",
                "Florence-2",
                "Segment Anything",
                "OpenPose",
                "CLIP-I",
                "ASTRA",
                "One-for-All",
                "AnyStory",
                "ensemble",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=_folders(),
                    tooltip="A folder in ComfyUI's input folder with PNG, JPEG or WebP files; folders in it are taken too.",
                ),
                io.String.Input(
                    "name",
                    default="my_data",
                    tooltip="Of the folder in ComfyUI's input folder that gets the data. The same name continues.",
                ),
                io.Combo.Input(
                    "captioner",
                    options=[*list_folders(CAPTIONERS), BESIDE],
                    tooltip=f"A folder of models/{CAPTIONERS} with a Florence-2 model; or captions and boxes of your own, in"
                    " a .json file beside each picture.",
                ),
                SAM.Input("sam", tooltip="From Load SAM: cuts the subjects out."),
                io.ClipVision.Input("clip_vision", tooltip="Judges whether two pictures show the same subject."),
                io.Boolean.Input(
                    "poses", default=True, tooltip="Find people's poses with OpenPose, and with them faces."
                ),
                io.ClipVision.Input(
                    "face_vision", optional=True, tooltip="Another encoder that judges faces; without it colours do."
                ),
                io.String.Input(
                    "config",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder='{"pair_similarity": 0.85, "min_side": 256}',
                    tooltip="Settings as JSON; what is left out keeps its default. The help page lists them.",
                ),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="manifest", tooltip="Pictures with all their subjects, for Training Data."
                ),
                io.Combo.Output(
                    display_name="pairs",
                    tooltip="Single subjects with a reference from another picture, for Training Data.",
                ),
                io.String.Output(display_name="report", tooltip="How many of what, and what was left out."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, folder: str | None = None, name: str | None = None, captioner: str | None = None, config: str | None = None
    ) -> bool | str:
        """No value comes for what is linked."""
        checks: list[tuple[Callable[[Any], Any], str | None]] = [
            (_folder, folder),
            (_out, name),
            (_check_captioner, captioner),
            (_config, config),
        ]
        answers = (sentence_or_true(check, value) for check, value in checks)
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, name: str | None = None, **_: Any) -> Any:
        """Changes when a picture in the folder does, and where the data was taken away."""
        from ..training.construction.build import MANIFEST
        from ..training.construction.shots import find_files

        if folder is None or name is None or folder not in _folders() or not is_file_name(name):
            return None
        files = find_files(_folder(folder), _out(name))
        return str([(path.name, path.stat().st_mtime_ns) for path in files]), (_out(name) / MANIFEST).is_file()

    @classmethod
    def execute(
        cls,
        folder: str,
        name: str,
        captioner: str,
        sam: ModelPatcher,
        clip_vision: ClipVisionModel,
        poses: bool = True,
        face_vision: ClipVisionModel | None = None,
        config: str = "",
    ) -> io.NodeOutput:
        from ..batch.journal import JournalError
        from ..training.construction.build import build, summary_lines
        from ..training.construction.captioners import FILES, find_captioner
        from ..training.construction.models import Models, PoseFinder, Vision
        from ..training.construction.steps import Report

        settings = _config(config)
        pose_finder = PoseFinder(_openpose()) if poses and settings.poses else None
        models = Models(
            captioner=_spoken(cls.DISPLAY_NAME, lambda: find_captioner(FILES if captioner == BESIDE else captioner)),
            sam=sam,
            vision=Vision(clip_vision),
            poses=pose_finder,
            faces=None if face_vision is None else Vision(face_vision),
        )
        report = Report(_Progress(), throw_exception_if_processing_interrupted)
        try:
            built = _spoken(cls.DISPLAY_NAME, lambda: build(_folder(folder), _out(name), models, settings, report))
        except JournalError as error:
            raise InputError(cls.DISPLAY_NAME, "name", str(error)) from None
        except OSError as error:
            raise InputError(
                cls.DISPLAY_NAME, "name", f"{error.strerror or error}; free some space and run it again"
            ) from None
        text = summary_lines(built.summary)
        return with_note(cls, text, *_choices(built), text)


def _choices(built: Built) -> tuple[str, str]:
    """The manifests as Training Data calls them; empty for one that would have had no row."""
    root = Path(folder_paths.get_input_directory())
    manifest, pairs = (path.relative_to(root).as_posix() if path else "" for path in (built.manifest, built.pairs))
    return manifest, pairs


def _folders() -> list[str]:
    """Folders of the input folder, but for those that data was built in."""
    root = Path(folder_paths.get_input_directory())
    found = folder_paths.get_input_subfolders()
    built = {name for name in found if (root / name / "steps").is_dir()}
    return [name for name in found if not any(name == top or name.startswith(f"{top}/") for top in built)]


def _folder(name: str) -> Path:
    if name not in _folders():
        there = ", ".join(_folders()) or "none"
        raise InputError(
            EnsembleBuildTrainingData.DISPLAY_NAME,
            "folder",
            f"there is no folder '{name}' in ComfyUI's input folder; put pictures into one there (there: {there})",
        )
    return Path(folder_paths.get_input_directory()) / name


def _out(name: str) -> Path:
    node = EnsembleBuildTrainingData.DISPLAY_NAME
    require_text(node, "name", name, "give the data a name")
    if not is_file_name(name):
        raise InputError(node, "name", f"'{name}' cannot be a folder's name; use letters, digits, - and _")
    return Path(folder_paths.get_input_directory()) / name


def _check_captioner(name: str) -> None:
    if name != BESIDE:
        _captioner(EnsembleBuildTrainingData.DISPLAY_NAME, name)


def _config(text: str) -> BuildConfig:
    return _spoken(EnsembleBuildTrainingData.DISPLAY_NAME, lambda: read_build_config(text))


def _openpose() -> Path:
    """OpenPose's body network."""
    node = EnsembleBuildTrainingData.DISPLAY_NAME
    require_packages(node, "controlnet_aux")
    path = find_openpose()
    if path is None:
        raise MissingModelError(f"{node}: {OPENPOSE_BODY.missing()}; or switch poses off.")
    return path


class _Progress:
    """The bar of the page, anew for every step."""

    def __init__(self) -> None:
        self.step, self.bar = "", comfy.utils.ProgressBar(1)

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self.step:
            self.step, self.bar = step, comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)


NODES: list[type[io.ComfyNode]] = [EnsembleCaptionBoxes, EnsembleSameSubjectPairs, EnsembleBuildTrainingData]
