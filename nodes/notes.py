"""A word to the artist, shown on the node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui


def with_note(node: type[io.ComfyNode], note: str, *outputs: Any) -> io.NodeOutput:
    """The outputs of a node with a note, which the page shows on the node and the run's history keeps.

    The node's schema needs `hidden=[io.Hidden.unique_id]`. The page shows a text that is part of a node's results on one
    node of the host only, but a text sent as progress on any.
    """
    if node.hidden is not None and node.hidden.unique_id is not None:
        from server import PromptServer  # only there where a server runs the node

        PromptServer.instance.send_progress_text(note, node.hidden.unique_id)
    return io.NodeOutput(*outputs, ui=ui.PreviewText(note))
