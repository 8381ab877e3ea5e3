"""One-for-All: a person put together from a face, garments and things, on FLUX Kontext."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import REFERENCE, SIDE, TINY_NOTE, lora, sampling, subject, tiny_models

KONTEXT_NOTE = (
    TINY_NOTE.replace("with FLUX.1 dev", "with FLUX.1 Kontext dev").replace("flux1-dev", "flux1-kontext-dev")
    + "- the LoRA of One-for-All in *Load LoRA*, and its DAM file in *Load DAM*\n"
)

FACE = ("face", "ensemble_face.png", "a woman with red hair", "face")
TOP = ("top", "ensemble_top.png", "a blue striped shirt", "upper garment")
BOTTOM = ("bottom", "ensemble_bottom.png", "orange trousers", "lower garment")
BAG = ("bag", "ensemble_bag.png", "a red handbag", "bag")
DRESS = ("dress", "ensemble_dress.png", "a green dotted dress", "dress")

Item = tuple[str, str, str, str]


def cast_of(*items: Item) -> list[Node]:
    """A picture and a subject for each item, chained, and the cast sheet."""
    nodes, earlier = [], None
    for number, (name, file, description, category) in enumerate(items, start=1):
        nodes += subject(number, file, name, description, earlier, category)
        earlier = name
    return [
        *nodes,
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link(f"subject_{earlier}")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
    ]


def prompt_and_references(cast: str, prompt: str, pose_image: Link | None = None) -> list[Node]:
    """The prompt with its item spans, and the references; column 2 and 3."""
    references = {
        "conditioning": Link("positive"),
        "vae": Link("vae"),
        "cast": Link(cast),
        "reference_size": REFERENCE,
    }
    if pose_image is not None:
        references["pose_image"] = pose_image
    return [
        *tiny_models(2),
        Node("positive", "EnsembleItemPrompt", 2, {"clip": Link("clip"), "cast": Link(cast), "prompt": prompt}),
        Node("show_spans", "PreviewImage", 2, {"images": Link("positive", 1)}, title="Whose words"),
        Node("references", "EnsembleReferenceLatents", 3, references),
        Node("adapter", "EnsembleDAMLoader", 3, {"dam_name": "ensemble_tiny_dam.safetensors"}),
    ]


def positions_and_temperature(model: str) -> list[Node]:
    """The LoRA, condition positions, then DAM."""
    return [
        lora(3, model, "ensemble_tiny_one_for_all_lora.safetensors"),
        Node("positions", "EnsembleConditionPositions", 3, {"model": Link("lora"), "layout": Link("references", 1)}),
        Node("dam", "EnsembleDAM", 3, {"model": Link("positions"), "dam": Link("adapter")}),
        Node("guidance", "FluxGuidance", 3, {"conditioning": Link("references"), "guidance": 6.0}),
    ]


FACE_TOP_BOTTOM_BAG = Workflow(
    name="one_for_all_face_top_bottom_bag",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. References, positions, DAM", "5. Picture"),
    nodes=[
        *cast_of(FACE, TOP, BOTTOM, BAG),
        *prompt_and_references(
            "subject_bag", "{face} in {top} and {bottom} with {bag} standing with arms crossed in a park"
        ),
        *positions_and_temperature("unet"),
        Node(
            "inspector",
            "EnsembleAttentionInspector",
            3,
            {"model": Link("dam"), "layout": Link("references", 1), "block": 4, "step": 10},
        ),
        *sampling(4, "inspector", Link("guidance"), (SIDE, SIDE), "ensemble/one_for_all", seed=3),
        Node(
            "maps",
            "EnsembleAttentionMaps",
            4,
            {"inspection": Link("inspector", 1), "samples": Link("sampler"), "image": Link("decode")},
        ),
        Node("show_maps", "PreviewImage", 4, {"images": Link("maps")}, title="Who looks at whom"),
        Node("show_table", "PreviewAny", 4, {"source": Link("maps", 1)}, title="Shares of attention"),
    ],
    notes=[
        Note(2, "Which models", KONTEXT_NOTE, 440),
        Note(
            3,
            "What to try",
            """**{face}, {top}, ...** in the prompt stand for the descriptions of the subjects of those names; *Whose words* shows
what was found.

**scheme** on *Condition Positions*: the rows of the paper's ablation. **item_anchor**: the equation as printed, or the middle of
the item's place.

**DAM** sharpens or softens what each part of the picture looks at; **strength** 0 shows the picture without it.

Paper: One-for-All, multi-subject customisation from single-subject examples.""",
            360,
        ),
    ],
)

DRESS_WORKFLOW = Workflow(
    name="one_for_all_dress",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. References, positions, DAM", "5. Picture"),
    nodes=[
        *cast_of(FACE, DRESS, BAG),
        *prompt_and_references("subject_bag", "{face} in {dress} with {bag} standing on a beach"),
        *positions_and_temperature("unet"),
        *sampling(4, "dam", Link("guidance"), (SIDE, SIDE), "ensemble/one_for_all_dress", seed=2),
    ],
    notes=[
        Note(2, "Which models", KONTEXT_NOTE, 440),
        Note(
            3,
            "A dress is two garments",
            """A subject of category **dress** takes the place of the upper *and* of the lower garment: its picture is given twice,
once in each place, as the paper does.""",
            160,
        ),
    ],
)

WITH_POSE = Workflow(
    name="one_for_all_with_pose",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. References, positions, DAM", "5. Picture"),
    nodes=[
        *cast_of(FACE, TOP, BOTTOM),
        Node("database", "EnsemblePoseDatabaseLoader", 1),
        Node(
            "retrieve",
            "EnsemblePoseRetriever",
            1,
            {"pose_db": Link("database"), "prompt": "a woman dancing with both arms raised"},
        ),
        Node(
            "render",
            "EnsemblePoseRender",
            1,
            {"pose": Link("retrieve"), "width": SIDE, "height": SIDE, "line_width": 2},
        ),
        Node("show_pose", "PreviewImage", 1, {"images": Link("render")}, title="The pose"),
        *prompt_and_references(
            "subject_bottom",
            "{face} in {top} and {bottom} dancing with both arms raised in a room",
            pose_image=Link("render"),
        ),
        Node("europe", "EnsembleEURoPE", 3, {"model": Link("unet"), "layout": Link("references", 1)}),
        *positions_and_temperature("europe"),
        *sampling(4, "dam", Link("guidance"), (SIDE, SIDE), "ensemble/one_for_all_pose"),
    ],
    notes=[
        Note(2, "Which models", KONTEXT_NOTE, 440),
        Note(
            3,
            "Pose and items on one model",
            """The paper names pose as what its method lacks. Here *EURoPE Positions* binds the pose map to the canvas and
*Condition Positions* places the cast; the order of the two nodes does not matter.""",
            180,
        ),
    ],
)

WORKFLOWS = (FACE_TOP_BOTTOM_BAG, DRESS_WORKFLOW, WITH_POSE)
