"""Poses: found by text, drawn as skeletons."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..models_info.registry import BUNDLED_POSES, POSE_DATABASES, MissingModelError, find_file, find_minilm, list_files
from ..pose_db.database import PoseDatabaseError, load_database
from ..pose_db.keypoints import check_frames, frame_from_people
from ..pose_db.render import render_frame
from ..pose_db.retriever import PoseRetriever
from .errors import InputError, require_text
from .types import POSE, POSE_DB

DEFAULT_THRESHOLD = 0.5
MAX_RANK = 1000
MAX_SIDE = 16384  # the host's own largest picture side


def _require_packages(node: str, *packages: str) -> None:
    """Say which optional dependency is missing before an import fails with a traceback."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{node}: the Python package {' and '.join(missing)} is not installed; run"
            " `pip install -r requirements.txt` in this pack's folder."
        )


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
    def validate_inputs(cls, database: str = BUNDLED_POSES.name) -> bool | str:  # no value while it comes by a link
        if find_file(POSE_DATABASES, database) is None:
            return str(_unknown_database(database))
        return True

    @classmethod
    def fingerprint_inputs(cls, database: str) -> float:
        """A database that was rewritten under the same name is loaded again."""
        path = find_file(POSE_DATABASES, database)
        return path.stat().st_mtime if path is not None else float("nan")

    @classmethod
    def execute(cls, database: str) -> io.NodeOutput:
        path = find_file(POSE_DATABASES, database)
        if path is None:
            raise _unknown_database(database)
        try:
            loaded = load_database(path)
        except PoseDatabaseError as error:
            raise InputError(cls.DISPLAY_NAME, "database", str(error)) from None
        try:
            return io.NodeOutput(PoseRetriever(loaded, find_minilm()))
        except MissingModelError as error:
            raise MissingModelError(f"{cls.DISPLAY_NAME}: {error}.") from None


def _unknown_database(database: str) -> InputError:
    known = ", ".join(list_files(POSE_DATABASES)) or "none is there"
    return InputError(
        EnsemblePoseDatabaseLoader.DISPLAY_NAME,
        "database",
        f"there is no '{database}' in models/{POSE_DATABASES}; choose one of: {known}",
    )


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
                POSE.Output(display_name="pose", tooltip="One frame; without people where nothing reached the threshold."),
                io.String.Output(display_name="matched_prompt"),
                io.Float.Output(display_name="score"),
                io.Boolean.Output(display_name="found"),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str = "linked") -> bool | str:  # no value while it comes by a link
        try:
            _check_prompt(prompt)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, pose_db: PoseRetriever, prompt: str, threshold: float, rank: int) -> io.NodeOutput:
        _check_prompt(prompt)
        _require_packages(cls.DISPLAY_NAME, "faiss", "sentence_transformers")
        database = pose_db.database
        if rank > len(database):
            raise InputError(cls.DISPLAY_NAME, "rank", f"the database has only {len(database)} entries; lower it")
        match = pose_db.search(prompt, rank)[-1]
        found = match.score >= threshold
        frame = database.frame(match.entry)
        if not found:
            frame = frame_from_people(np.zeros((0, 18, 3)), frame["canvas_width"], frame["canvas_height"])
        return io.NodeOutput([frame], database.prompts[match.entry], match.score, found)


def _check_prompt(prompt: str) -> None:
    require_text(EnsemblePoseRetriever.DISPLAY_NAME, "prompt", prompt, "write what the people do")


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
                io.Int.Input("width", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the width of your latent."),
                io.Int.Input("height", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the height of your latent."),
                io.Int.Input(
                    "line_width", default=4, min=1, max=64, tooltip="Half the thickness of a limb in pixels; OpenPose has 4."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask", tooltip="White where a skeleton is drawn."),
            ],
        )

    @classmethod
    def execute(cls, pose: Any, width: int, height: int, line_width: int) -> io.NodeOutput:
        _require_packages(cls.DISPLAY_NAME, "cv2")
        try:
            pictures = [render_frame(frame, width, height, line_width) for frame in check_frames(pose)]
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "pose", f"{error}; connect a pose detector or Retrieve Pose") from None
        images = torch.from_numpy(np.stack(pictures)).float() / 255.0  # (F, H, W, 3)
        return io.NodeOutput(images, (images.amax(-1) > 0).float())


NODES: list[type[io.ComfyNode]] = [EnsemblePoseDatabaseLoader, EnsemblePoseRetriever, EnsemblePoseRender]
