"""SeAl's parts, one left out at a time. Nothing is trained."""

from __future__ import annotations

from .seal_study import SeAlStudy
from .table import Ablation, Claim, Row

FULL = "SeAl"

ABLATION = Ablation(
    name="seal",
    title="SeAl: AnchorAlign, infusion, Delta-Bridge",
    source="SeAl, ablation study; it is in words, without numbers for whole parts",
    measures=("identity", "kept", "changed", "pose_error", "limbs_found"),
    columns=(),
    rows=(
        Row(FULL),
        Row("without AnchorAlign", drawing={"align": False}),
        Row("without infusion", drawing={"infuse": False}),
        Row("without Delta-Bridge", drawing={"bridge": False}),
        Row("the base model alone", drawing={"align": False, "infuse": False, "bridge": False}),
    ),
    claims=(
        Claim(FULL, "without AnchorAlign", "pose_error", said="its ablation study"),
        Claim(FULL, "without infusion", "kept", said="its ablation study"),
        Claim(FULL, "without Delta-Bridge", "changed", said="its section on Delta-Bridge"),
    ),
    note="The appearance is a reference picture of a puppet. The structure, from which the picture starts, is a grey figure in"
    " another pose, half as large and off to a side. The prompt gives the upper garment another colour than the reference has:"
    " *changed part* is that garment, *kept parts* is everything else. Every row is measured against its own structure, moved or"
    " not.",
    study=SeAlStudy,
)
