"""AnyStory's Figures 2 and 3 (sections 4.2 and 4.3), as numbers."""

from __future__ import annotations

from .anystory_study import AnyStoryStudy
from .table import Ablation, Claim, Row

FULL = "AnyStory"

ABLATION = Ablation(
    name="anystory",
    title="AnyStory: router, ReferenceNet",
    source="AnyStory, Figures 2 and 3; the paper prints no numbers for them",
    measures=("identity", "recognised", "leakage", "routing_iou"),
    columns=(),
    rows=(
        Row(FULL),
        Row("without router", drawing={"router": False}),
        Row("ReferenceNet switched off", drawing={"reference_net": False}),
        Row("trained without ReferenceNet", {"reference_dropout": 1.0}, {"reference_net": False}),
        Row("the base model alone", drawing={"subjects": False}),
    ),
    claims=(
        Claim(FULL, "without router", "leakage", said="Figure 3"),
        Claim(FULL, "without router", "identity", said="Figure 3"),
        Claim(FULL, "ReferenceNet switched off", "identity", said="Figure 2"),
        Claim(FULL, "trained without ReferenceNet", "identity", said="Figure 2"),
        Claim(FULL, "the base model alone", "identity", said="all figures"),
    ),
    note="Stage 1 learns from one puppet a picture, stage 2 from two, with the same number of steps each; two a test picture."
    " Captions say what people do and not what they wear: who they are can be seen in their references alone. All"
    " rows start from a picture in which each puppet is a blot of its mean colour on the true background, so that who is"
    " where is known. Without the router every pixel attends to the features of all subjects at once.",
    study=AnyStoryStudy,
)
