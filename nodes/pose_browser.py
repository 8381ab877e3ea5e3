"""Looking around in a pose database."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..pose_db.render import render_frame
from ..pose_db.retriever import PoseRetriever
from .contact_sheet import TILE, Tile, draw_contact_sheet
from .errors import require_packages, sentence_or_true
from .pose import check_prompt, require_search, search
from .types import POSE_DB

MAX_COUNT = 100


class EnsemblePoseBrowser(io.ComfyNode):
    """Shows the neighbours of a prompt with their scores."""

    DISPLAY_NAME = "Browse Poses"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseBrowser",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="The best matches of a prompt on one sheet, each with its rank, score and own prompt, to choose a rank"
            " or a threshold by eye.",
            search_aliases=["RAG-Pose", "ASTRA", "pose search", "neighbours", "contact sheet", "ensemble"],
            inputs=[
                POSE_DB.Input("pose_db", tooltip="The database to search."),
                io.String.Input("prompt", default="two people dancing", multiline=True, tooltip="What the people do."),
                io.Int.Input("count", default=10, min=1, max=MAX_COUNT, tooltip="How many matches to show."),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_prompt, prompt)

    @classmethod
    def execute(cls, pose_db: PoseRetriever, prompt: str, count: int) -> io.NodeOutput:
        _check_prompt(prompt)
        require_search(cls.DISPLAY_NAME)
        require_packages(cls.DISPLAY_NAME, "cv2")
        database = pose_db.database
        tiles = [
            Tile(
                render_frame(database.frame(match.entry), TILE, TILE, line_width=2) / 255.0,
                None,
                f"{rank}. {match.score:.3f}",
                database.prompts[match.entry],
            )
            for rank, match in enumerate(search(cls.DISPLAY_NAME, pose_db, prompt, count), start=1)
        ]
        return io.NodeOutput(torch.from_numpy(draw_contact_sheet(tiles))[None])


def _check_prompt(prompt: str) -> None:
    check_prompt(EnsemblePoseBrowser.DISPLAY_NAME, prompt)


NODES: list[type[io.ComfyNode]] = [EnsemblePoseBrowser]
