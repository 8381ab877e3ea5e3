"""The pose factory: from an action to checked poses of real pictures in a database of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..models_info.files import is_file_name
from ..models_info.registry import OPENPOSE_BODY, POSE_DATABASES, MissingModelError, find_openpose
from ..pose_db.alignment import (
    DEFAULT_THRESHOLD,
    DEFAULT_WEIGHTS,
    PARTS,
    alignment_score,
    parse_answer,
    parse_weights,
)
from ..pose_db.database import PoseDatabaseError, PoseEntry, save_database
from ..pose_db.exchange import body_people, entry_from_frame
from ..pose_db.keypoints import PoseFrame, check_frames
from ..pose_db.openpose import RESOLUTION, body_network, find_people
from ..pose_db.prompt_axes import prompt_variations
from ..pose_db.quality import QualityLimits, check_pose, report
from ..pose_db.retriever import PoseRetriever
from .errors import InputError, require_packages, require_text, sentence_or_true
from .types import POSE, POSE_DB

MAX_PROMPTS = 10_000
WEIGHTS_TEXT = ", ".join(map(str, DEFAULT_WEIGHTS))


class EnsemblePromptVariations(io.ComfyNode):
    """Varies an action systematically."""

    DISPLAY_NAME = "Prompt Variations"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePromptVariations",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Different prompts of one action: every line of attributes, environments and cameras comes up"
            " equally often. What follows runs once for each prompt.",
            search_aliases=["systematic prompts", "prompt list", "dataset", "ASTRA", "curation", "ensemble"],
            inputs=[
                io.String.Input(
                    "action",
                    default="two people shaking hands",
                    multiline=True,
                    tooltip="Who does what. The attribute goes before the first person or where {attribute} is.",
                ),
                io.String.Input(
                    "attributes",
                    default="young\nelderly\ntall\nin winter coats",
                    multiline=True,
                    tooltip="What the people are like, one a line. Empty leaves them out.",
                ),
                io.String.Input(
                    "environments",
                    default="in a park\nin an office\non a stage\nat the beach",
                    multiline=True,
                    tooltip="Where it happens, one a line. Empty leaves it out.",
                ),
                io.String.Input(
                    "cameras",
                    default="seen from the front\nseen from the side\nseen from behind\nlow angle, full body",
                    multiline=True,
                    tooltip="How it is seen, one a line. Empty leaves it out.",
                ),
                io.Int.Input("count", default=16, min=1, max=MAX_PROMPTS, tooltip="How many prompts, all different."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Another seed picks other combinations; the same one picks the same.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompts", is_output_list=True, tooltip="One prompt at a time.")],
        )

    @classmethod
    def validate_inputs(cls, action: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_action, action)

    @classmethod
    def execute(
        cls, action: str, attributes: str, environments: str, cameras: str, count: int, seed: int
    ) -> io.NodeOutput:
        _check_action(action)
        who, where, how = (text.splitlines() for text in (attributes, environments, cameras))
        try:
            variations = prompt_variations(action, who, where, how, count, seed)
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "count", str(error)) from None
        return io.NodeOutput([variation.prompt for variation in variations])


def _check_action(action: str) -> None:
    require_text(EnsemblePromptVariations.DISPLAY_NAME, "action", action, "write what the people do")


class EnsembleAlignmentScore(io.ComfyNode):
    """Scores a picture against its prompt."""

    DISPLAY_NAME = "Alignment Score"

    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=1.0, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return io.Schema(
            node_id="EnsembleAlignmentScore",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Does a picture show what its prompt says? Weighs three ratings into one score; they may come"
            " from a vision-language model's answer to the question on the help page.",
            search_aliases=["curation", "semantic alignment", "VLM filter", "ASTRA", "subject consistency", "ensemble"],
            inputs=[
                part("subject", "0 to 1: the right people, whole."),
                part("interaction", "0 to 1: they do what the prompt says."),
                part("detail", "0 to 1: place, camera, clothes and objects."),
                io.String.Input(
                    "weights",
                    default=WEIGHTS_TEXT,
                    optional=True,
                    tooltip="Of subject, interaction and detail; only their proportion counts.",
                ),
                io.Float.Input(
                    "threshold",
                    default=DEFAULT_THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="The lowest score at which the picture is accepted.",
                ),
                io.String.Input(
                    "answer",
                    optional=True,
                    force_input=True,
                    tooltip="A model's answer to the structured question; its ratings replace the three numbers.",
                ),
            ],
            outputs=[io.Float.Output(display_name="score"), io.Boolean.Output(display_name="accepted")],
        )

    @classmethod
    def validate_inputs(cls, weights: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_weights, weights)

    @classmethod
    def execute(
        cls,
        subject: float,
        interaction: float,
        detail: float,
        weights: str = WEIGHTS_TEXT,
        threshold: float = DEFAULT_THRESHOLD,
        answer: str | None = None,
    ) -> io.NodeOutput:
        ratings = (subject, interaction, detail)
        for name, rating in zip(PARTS, ratings, strict=True):
            if not 0 <= rating <= 1:
                raise InputError(cls.DISPLAY_NAME, name, f"it is {rating:g}; give a rating between 0 and 1")
        if answer is not None:
            try:
                ratings = parse_answer(answer)
            except ValueError as error:
                raise InputError(cls.DISPLAY_NAME, "answer", str(error)) from None
        score = float(alignment_score(ratings, _check_weights(weights)))
        return io.NodeOutput(score, score >= threshold)


def _check_weights(weights: str) -> tuple[float, float, float]:
    try:
        return parse_weights(weights)
    except ValueError as error:
        raise InputError(EnsembleAlignmentScore.DISPLAY_NAME, "weights", str(error)) from None


class EnsemblePoseExtract(io.ComfyNode):
    """Finds the poses in pictures."""

    DISPLAY_NAME = "Extract Pose"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseExtract",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Finds everybody's body keypoints with OpenPose, one frame a picture. ComfyUI's own SDPose"
            " nodes give the same kind of pose.",
            search_aliases=["openpose", "pose detection", "keypoints", "controlnet-aux", "preprocessor", "ensemble"],
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch."),
                io.Int.Input(
                    "resolution",
                    default=RESOLUTION,
                    min=64,
                    max=2048,
                    step=64,
                    optional=True,
                    advanced=True,
                    tooltip="Of the shorter side while people are looked for; more finds smaller people, slower.",
                ),
            ],
            outputs=[POSE.Output(display_name="pose", tooltip="One frame a picture, in the picture's own pixels.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, resolution: int = RESOLUTION) -> io.NodeOutput:
        _require_optional(cls.DISPLAY_NAME, "controlnet_aux")
        path = _openpose_weights()
        try:
            weights = cast("dict[str, torch.Tensor]", comfy.utils.load_torch_file(str(path), safe_load=True))
            network = body_network(weights)
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, f"models/{OPENPOSE_BODY.folder}/{path.name}", str(error)) from None
        patcher = comfy.model_patcher.CoreModelPatcher(
            network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        comfy.model_management.load_models_gpu([patcher])
        progress = comfy.utils.ProgressBar(len(image))
        frames = []
        for picture in image[..., :3]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            pixels = (picture.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)  # (H, W, 3)
            frames.append(find_people(network, pixels, resolution))
            progress.update(1)
        return io.NodeOutput(frames)


def _require_optional(node: str, package: str) -> None:
    """Say that an optional dependency is not installed."""
    try:
        require_packages(node, package)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{node}: the Python package {package} is not installed; run `pip install {package.replace('_', '-')}`,"
            " or use ComfyUI's own SDPose nodes."
        ) from None


def _openpose_weights() -> Path:
    """The body network's file."""
    path = find_openpose()
    if path is None:
        raise MissingModelError(f"{EnsemblePoseExtract.DISPLAY_NAME}: {OPENPOSE_BODY.missing()}.")
    return path


class EnsemblePoseQuality(io.ComfyNode):
    """Checks a pose."""

    DISPLAY_NAME = "Check Pose"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseQuality",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Is a pose good enough to keep? First confidence and visibility, then anatomy: bones, joints,"
            " left and right, people found twice, and the number of people.",
            search_aliases=[
                "pose quality",
                "anatomy check",
                "two-stage quality check",
                "ASTRA",
                "curation",
                "ensemble",
            ],
            inputs=[
                POSE.Input("pose", tooltip="From Extract Pose, SDPose or any OpenPose preprocessor."),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    multiline=True,
                    tooltip="The picture's prompt; the number of people in it is checked. May be empty.",
                ),
                io.Int.Input(
                    "people",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip="How many people there should be; 0 takes it from the prompt.",
                ),
                io.Float.Input(
                    "min_confidence",
                    default=QualityLimits.min_confidence,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Keypoints less sure than this count as not seen.",
                ),
                io.Int.Input(
                    "min_keypoints",
                    default=QualityLimits.min_keypoints,
                    min=1,
                    max=18,
                    optional=True,
                    advanced=True,
                    tooltip="How many of a person's 18 keypoints have to be seen.",
                ),
            ],
            outputs=[
                POSE.Output(display_name="pose", tooltip="The pose, as it came."),
                io.Boolean.Output(display_name="passed", tooltip="Whether every frame is good enough."),
                io.String.Output(display_name="report", tooltip="What is wrong with whom."),
            ],
        )

    @classmethod
    def execute(
        cls,
        pose: Any,
        prompt: str = "",
        people: int = 0,
        min_confidence: float = QualityLimits.min_confidence,
        min_keypoints: int = QualityLimits.min_keypoints,
    ) -> io.NodeOutput:
        limits = QualityLimits(min_confidence=min_confidence, min_keypoints=min_keypoints)
        passed, reports = True, []
        frames = _frames(cls.DISPLAY_NAME, pose)
        for number, frame in enumerate(frames, start=1):
            try:
                findings = check_pose(frame, prompt, people or None, limits)
            except ValueError as error:
                raise InputError(cls.DISPLAY_NAME, "pose", str(error)) from None
            passed = passed and not findings
            heading = f"Picture {number}. " if len(frames) > 1 else ""
            reports.append(heading + report(findings, len(frame["people"])))
        return io.NodeOutput(pose, passed, "\n".join(reports))


def _frames(node: str, pose: Any) -> list[PoseFrame]:
    try:
        return list(check_frames(pose))
    except (ValueError, TypeError) as error:
        raise InputError(node, "pose", f"{error}; connect Extract Pose or another pose detector") from None


class EnsemblePoseDatabaseAdd(io.ComfyNode):
    """Adds poses to a database."""

    DISPLAY_NAME = "Add to Pose Database"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseDatabaseAdd",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Adds poses with their prompts to a pose database, all those of a list at once. The database"
            " that comes in stays as it is; save the one that comes out.",
            search_aliases=["append pose", "extend database", "RAG-Pose", "ASTRA", "ensemble"],
            is_input_list=True,
            inputs=[
                POSE_DB.Input("pose_db", tooltip="The database to add to."),
                POSE.Input("pose", tooltip="One pose or a list; every frame becomes an entry."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The words by which the pose will be found; one a pose.",
                ),
                io.String.Input(
                    "tags",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Notes such as 'camera: from behind', one a line. May be empty.",
                ),
                io.Boolean.Input(
                    "passed",
                    default=True,
                    optional=True,
                    tooltip="From Check Pose: poses that did not pass are left out.",
                ),
                io.Boolean.Input(
                    "accepted",
                    default=True,
                    optional=True,
                    tooltip="From Alignment Score: poses of pictures that were not accepted are left out.",
                ),
            ],
            outputs=[POSE_DB.Output(display_name="pose_db")],
        )

    @classmethod
    def execute(
        cls,
        pose_db: list[PoseRetriever],
        pose: list[Any],
        prompt: list[str],
        tags: list[str] | None = None,
        passed: list[bool] | None = None,
        accepted: list[bool] | None = None,
    ) -> io.NodeOutput:
        entries: list[PoseEntry] = []
        for number, value in enumerate(pose):
            good = _item(passed or [True], number) and _item(accepted or [True], number)
            if good:
                entries += _entries(value, _item(prompt, number), _item(tags or [""], number))
        if not entries:
            return io.NodeOutput(pose_db[0])
        require_packages(cls.DISPLAY_NAME, "sentence_transformers")
        return io.NodeOutput(pose_db[0].extended(entries))


def _item(values: list[Any], number: int) -> Any:
    """Of a list that is too short the last item counts for the rest, as everywhere in ComfyUI."""
    return values[min(number, len(values) - 1)]


def _entries(pose: Any, prompt: str, tags: str) -> list[PoseEntry]:
    node = EnsemblePoseDatabaseAdd.DISPLAY_NAME
    require_text(node, "prompt", prompt, "write the words by which the pose will be found")
    notes = _parse_tags(tags)
    entries = []
    for frame in _frames(node, pose):
        try:
            if not len(body_people(frame)):
                raise ValueError("nobody is in it; connect passed of Check Pose to leave such poses out")
            entries.append(entry_from_frame(frame, prompt, notes))
        except ValueError as error:
            raise InputError(node, "pose", str(error)) from None
    return entries


def _parse_tags(text: str) -> dict[str, str]:
    tags = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not (name and colon and value):
            raise InputError(
                EnsemblePoseDatabaseAdd.DISPLAY_NAME,
                "tags",
                f"'{line}' is not a note; write one a line, as in camera: side",
            )
        tags[name.lower()] = value
    return tags


class EnsemblePoseDatabaseSave(io.ComfyNode):
    """Saves a database."""

    DISPLAY_NAME = "Save Pose Database"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseDatabaseSave",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description=f"Saves a pose database into models/{POSE_DATABASES}, where Load Pose Database finds it.",
            search_aliases=["export pose database", "RAG-Pose", "ASTRA", "ensemble"],
            is_output_node=True,
            inputs=[
                POSE_DB.Input("pose_db", tooltip="From Add to Pose Database."),
                io.String.Input(
                    "name", default="my_poses", tooltip="The file's name; a number is added where that name is taken."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Replace a database of that name instead of adding a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_name, name)

    @classmethod
    def execute(cls, pose_db: PoseRetriever, name: str, overwrite: bool = False) -> io.NodeOutput:
        path = _free_path(_check_name(name), overwrite)
        try:
            save_database(pose_db.database, path)
        except PoseDatabaseError as error:
            raise InputError(cls.DISPLAY_NAME, "pose_db", str(error)) from None
        return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


def _check_name(name: str) -> str:
    """The name without its ending; an InputError where it is empty or could lead out of the folder."""
    stem = name.strip().removesuffix(".safetensors")
    require_text(EnsemblePoseDatabaseSave.DISPLAY_NAME, "name", stem, "give the database a name")
    if not is_file_name(stem):
        raise InputError(
            EnsemblePoseDatabaseSave.DISPLAY_NAME,
            "name",
            f"'{name.strip()}' cannot be a file's name; use letters, digits, spaces, - and _, no folders",
        )
    return stem


def _free_path(stem: str, overwrite: bool) -> Path:
    folder = Path(folder_paths.get_folder_paths(POSE_DATABASES)[0])
    path, number = folder / f"{stem}.safetensors", 1
    while path.exists() and not overwrite:
        number += 1
        path = folder / f"{stem}_{number:05d}.safetensors"
    return path


NODES: list[type[io.ComfyNode]] = [
    EnsemblePromptVariations,
    EnsembleAlignmentScore,
    EnsemblePoseExtract,
    EnsemblePoseQuality,
    EnsemblePoseDatabaseAdd,
    EnsemblePoseDatabaseSave,
]
