"""Poses: found by text, drawn as skeletons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..models_info.registry import BUNDLED_POSES, POSE_DATABASES, MissingModelError, find_minilm, list_files
from ..pose_db.collection import open_retriever
from ..pose_db.database import PoseDatabaseError
from ..pose_db.index import IndexFileError
from ..pose_db.keypoints import check_frames, frame_from_people
from ..pose_db.people import MIN_CONFIDENCE
from ..pose_db.render import render_frame
from ..pose_db.retriever import DEFAULT_THRESHOLD, Match, PoseRetriever
from .errors import InputError, require_packages, require_text, sentence_or_true
from .model_choice import chosen_file, file_version
from .types import POSE, POSE_DB

MAX_RANK = 1000
MAX_SIDE = 16384  # the host's own largest picture side


class EnsemblePoseDatabaseLoader(io.ComfyNode):
    """Loads a pose database."""

    DISPLAY_NAME = "Load Pose Database"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseDatabaseLoader",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Loads a pose database: thousands of prompts, each with the skeletons of everyone in it.",
            search_aliases=["RAG-Pose", "ASTRA", "pose retrieval", "openpose", "ensemble"],
            inputs=[
                io.Combo.Input(
                    "database",
                    options=list_files(POSE_DATABASES),
                    default=BUNDLED_POSES.name,
                    tooltip=f"A file of models/{POSE_DATABASES}; {BUNDLED_POSES.name} comes with the pack.",
                )
            ],
            outputs=[POSE_DB.Output(display_name="pose_db")],
        )

    @classmethod
    def validate_inputs(cls, database: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_find_database, database)

    @classmethod
    def fingerprint_inputs(cls, database: str) -> float:
        """A database that was rewritten under the same name is loaded again."""
        return file_version(POSE_DATABASES, database)

    @classmethod
    def execute(cls, database: str) -> io.NodeOutput:
        path = _find_database(database)
        try:
            return io.NodeOutput(open_retriever(path, find_minilm()))
        except PoseDatabaseError as error:
            raise InputError(cls.DISPLAY_NAME, "database", str(error)) from None
        except MissingModelError as error:
            raise MissingModelError(f"{cls.DISPLAY_NAME}: {error}.") from None


def _find_database(database: str) -> Path:
    return chosen_file(EnsemblePoseDatabaseLoader.DISPLAY_NAME, "database", POSE_DATABASES, database, "choose")


class EnsemblePoseRetriever(io.ComfyNode):
    """Finds the pose that fits a prompt."""

    DISPLAY_NAME = "Retrieve Pose"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseRetriever",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Finds the database's best pose for a prompt. Below the threshold the pose is empty and the picture is"
            " made from text alone.",
            search_aliases=["RAG-Pose", "ASTRA", "pose search", "text to pose", "maximum inner product", "ensemble"],
            inputs=[
                POSE_DB.Input("pose_db", tooltip="The database to search."),
                io.String.Input(
                    "prompt",
                    default="two people shaking hands",
                    multiline=True,
                    tooltip="What the people do. Leave style and lighting out: they do not shape a pose.",
                ),
                io.Float.Input(
                    "threshold",
                    default=DEFAULT_THRESHOLD,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The lowest cosine between your prompt and the entry's at which its pose is used.",
                ),
                io.Int.Input(
                    "rank", default=1, min=1, max=MAX_RANK, tooltip="1 is the best match, 2 the second best, and so on."
                ),
            ],
            outputs=[
                POSE.Output(
                    display_name="pose", tooltip="One frame; without people where nothing reached the threshold."
                ),
                io.String.Output(display_name="matched_prompt"),
                io.Float.Output(display_name="score"),
                io.Boolean.Output(display_name="found"),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_prompt, prompt)

    @classmethod
    def execute(cls, pose_db: PoseRetriever, prompt: str, threshold: float, rank: int) -> io.NodeOutput:
        _check_prompt(prompt)
        require_search(cls.DISPLAY_NAME)
        database = pose_db.database
        if rank > len(database):
            raise InputError(cls.DISPLAY_NAME, "rank", f"the database has only {len(database)} entries; lower it")
        match = search(cls.DISPLAY_NAME, pose_db, prompt, rank)[-1]
        found = match.score >= threshold
        frame = database.frame(match.entry)
        if not found:
            frame = frame_from_people(np.zeros((0, 18, 3)), frame["canvas_width"], frame["canvas_height"])
        return io.NodeOutput([frame], database.prompts[match.entry], match.score, found)


def _check_prompt(prompt: str) -> None:
    check_prompt(EnsemblePoseRetriever.DISPLAY_NAME, prompt)


def check_prompt(node: str, prompt: str) -> None:
    """`InputError` where a prompt to search with is empty."""
    require_text(node, "prompt", prompt, "write what the people do")


def require_search(node: str) -> None:
    """Say which package is missing for a search by text."""
    require_packages(node, "faiss", "sentence_transformers")


def search(node: str, pose_db: PoseRetriever, prompt: str, count: int) -> list[Match]:
    """The `count` best entries, best first; `InputError` where the database's files will not do."""
    try:
        return pose_db.search(prompt, count)
    except (IndexFileError, PoseDatabaseError) as error:
        raise InputError(node, "pose_db", str(error)) from None


class EnsemblePoseRender(io.ComfyNode):
    """Draws poses."""

    DISPLAY_NAME = "Render Pose"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseRender",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Draws OpenPose skeletons, as large as fits, without stretching anybody. One picture a frame.",
            search_aliases=["openpose", "draw pose", "skeleton", "ControlNet", "pose map", "ensemble"],
            inputs=[
                POSE.Input("pose", tooltip="From Retrieve Pose, SDPose, or any OpenPose preprocessor."),
                io.Int.Input(
                    "width", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the width of your latent."
                ),
                io.Int.Input(
                    "height", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the height of your latent."
                ),
                io.Int.Input(
                    "line_width",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Half the thickness of a limb in pixels; OpenPose has 4.",
                ),
                io.Float.Input(
                    "min_confidence",
                    default=MIN_CONFIDENCE,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Keypoints less sure than this are left out. Trunk and limbs need half of it, so that"
                    " hidden arms and legs are drawn, but no face on the back of a head. 0 draws all.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask", tooltip="White where a skeleton is drawn."),
            ],
        )

    @classmethod
    def execute(
        cls, pose: Any, width: int, height: int, line_width: int, min_confidence: float = MIN_CONFIDENCE
    ) -> io.NodeOutput:
        require_packages(cls.DISPLAY_NAME, "cv2")
        try:
            frames = check_frames(pose)
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "pose", f"{error}; connect a pose detector or Retrieve Pose") from None
        try:
            drawn = np.stack([render_frame(frame, width, height, line_width, min_confidence) for frame in frames])
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "pose", str(error)) from None
        # In NumPy, on one thread: at this size, waiting for torch's threads on a busy machine takes longer than the work.
        image = np.divide(drawn, 255.0, dtype=np.float32)  # (F, H, W, 3)
        mask = (drawn[..., 0] | drawn[..., 1] | drawn[..., 2]) > 0  # (F, H, W)
        return io.NodeOutput(torch.from_numpy(image), torch.from_numpy(mask.astype(np.float32)))


NODES: list[type[io.ComfyNode]] = [EnsemblePoseDatabaseLoader, EnsemblePoseRetriever, EnsemblePoseRender]
