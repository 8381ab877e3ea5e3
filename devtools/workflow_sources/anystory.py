"""AnyStory: several subjects routed to their places in the picture, on SDXL."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import SIDE, TINY_SDXL_NOTE, sdxl_sampling, subject, text, tiny_sdxl_models
from devtools.workflow_sources.seal import cache

ANYSTORY_NOTE = (
    TINY_SDXL_NOTE
    + "- *Load CLIP Vision* (ViT-H/14) instead of *Tiny CLIP Vision*\n"
    + "- an AnyStory file for SDXL in `models/ensemble_anystory`\n"
)
SIZE = (SIDE, SIDE)
PROMPT = (
    "a woman in a red striped shirt and blue trousers and a man in a green t-shirt and white trousers"
    " walking on a beach"
)


def encoded_cast(columns: tuple[int, int]) -> list[Node]:
    """Alice and Bruno as a cast in column 0 and 1, the models and the cast's features in `columns`."""
    models, features = columns
    return [
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red striped shirt and blue trousers", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green t-shirt and white trousers", "alice"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_bruno")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        *tiny_sdxl_models(models),
        Node("vision", "EnsembleTinyCLIPVision", models),
        Node("anystory", "EnsembleAnyStoryLoader", models, {"name": "ensemble_tiny_anystory.safetensors"}),
        Node(
            "features",
            "EnsembleAnyStoryEncode",
            features,
            {
                "anystory": Link("anystory"),
                "cast": Link("subject_bruno"),
                "clip_vision": Link("vision"),
                "vae": Link("vae"),
            },
        ),
    ]


ROUTED = Node("routed", "EnsembleAnyStory", 3, {"model": Link("unet"), "features": Link("features")})

TWO_SUBJECTS = Workflow(
    name="anystory_two_subjects",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. Subjects", "5. Picture"),
    nodes=[
        *encoded_cast((2, 3)),
        text("positive", 2, PROMPT, "Prompt"),
        text("negative", 2, "blurry", "Negative prompt"),
        ROUTED,
        *sdxl_sampling(4, "routed", Link("positive"), Link("negative"), SIZE, "ensemble/anystory"),
    ],
    notes=[
        Note(2, "Which models", ANYSTORY_NOTE, 340),
        Note(
            3,
            "What to try",
            """**eta** weighs what CLIP saw of each subject, **gamma** what the reference network saw of its texture.

Chain more *Subject* nodes for more people; a single subject works the same way.

Paper: AnyStory, unified single and multiple subject personalisation.""",
            200,
        ),
    ],
)

ROUTING_MAPS = Workflow(
    name="anystory_routing_maps",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. Subjects", "5. Picture", "6. Who is where"),
    nodes=[
        *encoded_cast((2, 3)),
        text("positive", 2, PROMPT, "Prompt"),
        text("negative", 2, "blurry", "Negative prompt"),
        ROUTED,
        *sdxl_sampling(4, "routed", Link("positive"), Link("negative"), SIZE, "ensemble/anystory_maps"),
        Node("maps", "EnsembleRoutingMaps", 5, {"routing": Link("routed", 1), "samples": Link("sampler")}),
        Node("show_maps", "PreviewImage", 5, {"images": Link("maps")}, title="Routing maps"),
        Node("masks", "MaskToImage", 5, {"mask": Link("maps", 1)}, title="Masks as pictures"),
        Node("show_masks", "PreviewImage", 5, {"images": Link("masks")}, title="A mask for each"),
        Node("photo", "LoadImage", 5, {"image": "ensemble_alice.png"}, title="Any picture"),
        Node(
            "segment",
            "EnsembleReferenceSegment",
            5,
            {"model": Link("unet"), "features": Link("features"), "vae": Link("vae"), "image": Link("photo")},
        ),
        Node("show_segment", "PreviewImage", 5, {"images": Link("segment", 1)}, title="Who is in it"),
    ],
    notes=[
        Note(2, "Which models", ANYSTORY_NOTE, 340),
        Note(
            5,
            "What it shows",
            """*Routing Maps*: which subject every part of the picture listened to; the mean over layers and steps, or one layer and
one step. The masks go into any node that takes one.

*Segment by Reference* finds the subjects of the cast in a picture that was not made here.""",
            200,
        ),
    ],
)

SCENES = (
    "a woman and a man meeting on a street",
    "a woman and a man running in the snow",
    "a woman and a man drinking tea in a room",
    "a woman and a man waving on a beach",
)

STORY = Workflow(
    name="anystory_story",
    columns=("1. Pictures", "2. Cast", "3. Models", "4. Scenes", "5. Pictures"),
    nodes=[
        *encoded_cast((2, 2)),
        *[
            Node(f"scene_{number}", "PrimitiveStringMultiline", 3, {"value": scene}, title=f"Scene {number}")
            for number, scene in enumerate(SCENES, start=1)
        ],
        Node(
            "scenes",
            "CreateList",
            3,
            {f"inputs.input{number}": Link(f"scene_{number + 1}") for number in range(len(SCENES))},
            title="All scenes",
        ),
        text("positive", 3, Link("scenes"), "Encode each scene"),
        text("negative", 3, "blurry", "Negative prompt"),
        ROUTED,
        *sdxl_sampling(4, "routed", Link("positive"), Link("negative"), SIZE, "ensemble/anystory_scene"),
        Node(
            "sheet_of_scenes",
            "ImageGrid",
            4,
            {"images": Link("decode"), "columns": 2, "cell_width": SIZE[0], "cell_height": SIZE[1]},
            title="Contact sheet",
        ),
        Node(
            "save_sheet",
            "SaveImage",
            4,
            {"images": Link("sheet_of_scenes"), "filename_prefix": "ensemble/anystory_story"},
        ),
    ],
    notes=[
        Note(2, "Which models", ANYSTORY_NOTE, 340),
        Note(
            3,
            "One cast, many scenes",
            """*All scenes* is a list, so everything after it runs once for each scene, in one queue entry, while the cast is
encoded once. Add more scenes to the list; the contact sheet grows with it.""",
            150,
        ),
    ],
)

ROUTES_SEAL = Workflow(
    name="anystory_routes_seal",
    columns=("1. Pictures", "2. Cast", "3. Models and text", "4. Subjects and appearances", "5. Picture"),
    nodes=[
        *encoded_cast((2, 3)),
        text("positive", 2, PROMPT, "Prompt"),
        text("appearance", 2, "a photo of a person", "What the pictures show"),
        text("negative", 2, "blurry", "Negative prompt"),
        ROUTED,
        cache("alice", 3, Link("appearance"), Link("load_alice"), Link("mask_alice")),
        cache("bruno", 3, Link("appearance"), Link("load_bruno"), Link("mask_bruno")),
        Node(
            "infusion",
            "EnsembleAppearanceInfusion",
            3,
            {
                "model": Link("routed"),
                "appearances.appearance0": Link("cache_alice"),
                "appearances.appearance1": Link("cache_bruno"),
                "routing": Link("routed", 1),
            },
        ),
        *sdxl_sampling(4, "infusion", Link("positive"), Link("negative"), SIZE, "ensemble/anystory_routes_seal"),
        Node(
            "maps",
            "EnsembleInfusionMaps",
            4,
            {"inspection": Link("infusion", 1), "samples": Link("sampler"), "image": Link("decode")},
        ),
        Node("show_maps", "PreviewImage", 4, {"images": Link("maps")}, title="Where each was infused"),
    ],
    notes=[
        Note(2, "Which models", ANYSTORY_NOTE, 340),
        Note(
            3,
            "The router draws the masks",
            """AnyStory finds out, layer by layer, which part of the picture belongs to whom; SeAl's infusion copies each one's
texture there and nowhere else. The first appearance belongs to the first subject of the cast.""",
            160,
        ),
    ],
)

WORKFLOWS = (TWO_SUBJECTS, ROUTING_MAPS, STORY, ROUTES_SEAL)
