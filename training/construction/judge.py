"""The verdict of a vision-language model on a pair, through any ComfyUI workflow: do both pictures show the same subject?

The workflow, in API form, has two Load Image nodes, called by their titles; `%prompt%` in any of its text boxes becomes the
question; and a Preview as Text node shows the model's answer, of which the first yes or no counts.

Source: One-for-All, appendix on its data.
"""

from __future__ import annotations

import re

from ...batch.queue_client import QueueClient, Workflow
from ...pose_db.factory import fill_workflow
from ..errors import TrainingError
from .edit import find_node

QUESTION = (
    "Do both pictures show the very same {category}, not merely a similar one? Background, pose, light and crop may differ."
    " Answer with yes or no."
)
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def same_subject(
    client: QueueClient,
    workflow: Workflow,
    nodes: tuple[str, str],
    first: bytes,
    second: bytes,
    category: str,
    seed: int,
) -> bool | None:
    """Whether the model takes two picture files (PNG) to show one subject; None where its answer says neither yes nor no.

    Args:
        nodes: titles of the Load Image nodes for the first and the second picture.

    Raises:
        QueueError, TrainingError: it cannot be asked; one sentence.
    """
    filled = fill_workflow(workflow, QUESTION.format(category=category), seed)
    for number, (title, picture) in enumerate(zip(nodes, (first, second), strict=True)):
        name = client.upload(f"ensemble_{client.client_id}_{number}.png", picture)
        find_node(filled, title)["inputs"]["image"] = name
    texts = client.run(filled).texts
    if not texts:
        raise TrainingError("the workflow shows no answer; connect Preview as Text to the model's answer", "workflow")
    verdicts = _VERDICT.findall(" ".join(texts))
    return verdicts[0].lower() == "yes" if verdicts else None
