"""ASTRA: a retrieved pose and a cast on FLUX."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import REFERENCE, SIDE, TINY_NOTE, lora, sampling, subject, tiny_models

PROMPT = (
    "a woman in a red striped shirt and blue trousers and a man in a green t-shirt and white trousers standing and chatting with"
    " each other, in a park"
)

ASTRA_POSE_AND_IDENTITY = Workflow(
    name="astra_pose_and_identity",
    columns=("1. Pictures", "2. Cast", "3. Pose", "4. Models and text", "5. References and positions", "6. Picture"),
    nodes=[
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red striped shirt and blue trousers", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green t-shirt and white trousers", "alice"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_bruno")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        Node("prompt", "PrimitiveStringMultiline", 2, {"value": PROMPT}, title="Prompt"),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        Node("retrieve", "EnsemblePoseRetriever", 2, {"pose_db": Link("database"), "prompt": Link("query")}),
        Node("show_match", "PreviewAny", 2, {"source": Link("retrieve", 1)}, title="Matched prompt"),
        Node("show_score", "PreviewAny", 2, {"source": Link("retrieve", 2)}, title="Score"),
        Node(
            "render",
            "EnsemblePoseRender",
            2,
            {"pose": Link("retrieve"), "width": SIDE, "height": SIDE, "line_width": 2},
        ),
        Node("show_pose", "PreviewImage", 2, {"images": Link("render")}, title="The pose"),
        *tiny_models(3),
        Node(
            "positive", "CLIPTextEncode", 3, {"clip": Link("clip"), "text": Link("prompt")}, title="Encode the prompt"
        ),
        Node(
            "references",
            "EnsembleReferenceLatents",
            4,
            {
                "conditioning": Link("positive"),
                "vae": Link("vae"),
                "cast": Link("subject_bruno"),
                "pose_image": Link("render"),
                "reference_size": REFERENCE,
            },
        ),
        Node("guidance", "FluxGuidance", 4, {"conditioning": Link("references")}),
        Node("europe", "EnsembleEURoPE", 4, {"model": Link("unet"), "layout": Link("references", 1)}),
        *sampling(5, "europe", Link("guidance"), (SIDE, SIDE), "ensemble/astra", seed=8),
        Node("query", "EnsemblePromptNormalizer", 2, {"prompt": Link("prompt")}),
    ],
    notes=[
        Note(3, "Which models", TINY_NOTE, 420),
        Note(
            4,
            "What to try",
            """**mode** on *EURoPE Positions*: `EURoPE` puts the subjects off the canvas and the pose on it. The two symmetric modes
are the paper's ablations and show why.

**rank** on *Retrieve Pose*: 2, 3, ... walk the next best poses. If **score** stays below **threshold**, no pose is used and the
picture is made from text alone.

Chain more *Subject* nodes for more people.

Paper: ASTRA, retrieval-augmented pose guidance and disentangled position embedding.""",
            320,
        ),
    ],
)

ACTIONS = {
    "alice": "a woman waving with the right hand",
    "bruno": "a man sitting on a chair",
    "chiyo": "a woman dancing with both arms raised",
}


def own_pose(name: str, action: str) -> list[Node]:
    """A subject's own words and the pose that is found for them."""
    inputs = {"pose_db": Link("database"), "prompt": Link(f"query_{name}")}
    return [
        Node(f"query_{name}", "EnsemblePromptNormalizer", 2, {"prompt": action}, title=f"What {name} does"),
        Node(f"retrieve_{name}", "EnsemblePoseRetriever", 2, inputs, title=f"Pose of {name}"),
    ]


ASTRA_MULTI_SUBJECT = Workflow(
    name="astra_multi_subject",
    columns=(
        "1. Pictures",
        "2. Cast",
        "3. A pose for each",
        "4. Models and text",
        "5. References, positions, DSM",
        "6. Picture",
    ),
    nodes=[
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red striped shirt and blue trousers", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green t-shirt and white trousers", "alice"),
        *subject(3, "ensemble_chiyo.png", "chiyo", "a woman in a purple dotted dress", "bruno"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_chiyo")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        *[node for name, action in ACTIONS.items() for node in own_pose(name, action)],
        Node(
            "layout",
            "EnsemblePoseLayout",
            2,
            {f"poses.pose{number}": Link(f"retrieve_{name}") for number, name in enumerate(ACTIONS)}
            | {"width": SIDE, "height": SIDE},
        ),
        Node(
            "render", "EnsemblePoseRender", 2, {"pose": Link("layout"), "width": SIDE, "height": SIDE, "line_width": 2}
        ),
        Node("show_pose", "PreviewImage", 2, {"images": Link("render")}, title="All poses"),
        *tiny_models(3),
        Node("vision", "EnsembleTinyCLIPVision", 3),
        Node("adapter", "EnsembleDSMLoader", 3, {"dsm_name": "ensemble_tiny_dsm.safetensors"}),
        Node(
            "positive",
            "CLIPTextEncode",
            3,
            {
                "clip": Link("clip"),
                "text": "a woman in a red striped shirt and blue trousers waving with the right hand, a man in a green t-shirt and"
                " white trousers sitting on a chair and a woman in a purple dotted dress dancing with both arms raised on a beach",
            },
            title="Encode the prompt",
        ),
        Node(
            "references",
            "EnsembleReferenceLatents",
            4,
            {
                "conditioning": Link("positive"),
                "vae": Link("vae"),
                "cast": Link("subject_chiyo"),
                "pose_image": Link("render"),
                "reference_size": REFERENCE,
            },
        ),
        lora(4, "unet", "ensemble_tiny_astra_lora.safetensors"),
        Node("europe", "EnsembleEURoPE", 4, {"model": Link("lora"), "layout": Link("references", 1)}),
        Node(
            "dsm",
            "EnsembleDSM",
            4,
            {
                "model": Link("europe"),
                "conditioning": Link("references"),
                "dsm": Link("adapter"),
                "cast": Link("subject_chiyo"),
                "clip_vision": Link("vision"),
            },
        ),
        Node("guidance", "FluxGuidance", 4, {"conditioning": Link("dsm", 1)}),
        *sampling(5, "dsm", Link("guidance"), (SIDE, SIDE), "ensemble/astra_multi"),
    ],
    notes=[
        Note(3, "Which models", TINY_NOTE, 420),
        Note(
            4,
            "What to try",
            """**Everybody has an own pose**: the first pose of *Lay Out Poses* belongs to the first subject of the cast, and so on.
Connect *boxes* to say where each one stands.

**DSM** tells the words of the prompt who is meant. It was trained together with the LoRA in *Load LoRA*, which is ComfyUI's own
node: use both or neither.""",
            320,
        ),
    ],
)

WORKFLOWS = (ASTRA_POSE_AND_IDENTITY, ASTRA_MULTI_SUBJECT)
