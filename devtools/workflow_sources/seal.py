"""SeAl: identity from one picture, without training, on SDXL."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import SIDE, TINY_SDXL_NOTE, decoded, sdxl_sampling, text, tiny_sdxl_models

SIZE = PAIR = (SIDE, SIDE)
CONTROL_NOTE = (
    TINY_SDXL_NOTE + "- a ControlNet of SDXL for poses in *Load ControlNet Model*, for example xinsir's openpose one\n"
)


def picture(name: str, file: str, title: str) -> list[Node]:
    """A loaded picture and its alpha channel as mask; the nodes' keys end in `name`."""
    return [
        Node(f"load_{name}", "LoadImage", 0, {"image": file}, title=title),
        Node(f"mask_{name}", "InvertMask", 0, {"mask": Link(f"load_{name}", 1)}, title="Alpha to mask"),
    ]


def found_pose(key: str, column: int, prompt: str) -> Node:
    """The pose that fits `prompt`."""
    return Node(key, "EnsemblePoseRetriever", column, {"pose_db": Link("database"), "prompt": prompt})


def drawn(pose: Link, column: int, size: tuple[int, int]) -> list[Node]:
    """The pose as a picture."""
    inputs = {"pose": pose, "width": size[0], "height": size[1]}
    return [Node("render", "EnsemblePoseRender", column, inputs)]


def controlled(column: int, positive: Link, negative: Link, image: Link) -> list[Node]:
    """The tiny ControlNet on both prompts."""
    return [
        Node("control", "ControlNetLoader", column, {"control_net_name": "ensemble_tiny_controlnet.safetensors"}),
        Node(
            "controlled",
            "ControlNetApplyAdvanced",
            column,
            {
                "positive": positive,
                "negative": negative,
                "control_net": Link("control"),
                "image": image,
                "strength": 0.8,
                "vae": Link("vae"),
            },
        ),
    ]


def cache(name: str, column: int, prompt: Link, image: Link, mask: Link) -> Node:
    """The appearance cache of one picture."""
    inputs = {
        "model": Link("unet"),
        "conditioning": prompt,
        "vae": Link("vae"),
        "image": image,
        "mask": mask,
        "timesteps": 4,
        "max_megapixels": SIDE * SIDE / 1e6,  # sees the picture as large as it draws
    }
    return Node(f"cache_{name}", "EnsembleAppearanceCache", column, inputs, title=f"Appearance of {name}")


IDENTITY_AND_POSE = Workflow(
    name="seal_identity_and_pose",
    columns=("1. Picture", "2. Pose", "3. Align", "4. Models and text", "5. Infusion", "6. Picture"),
    nodes=[
        *picture("alice", "ensemble_alice.png", "Who"),
        Node("database", "EnsemblePoseDatabaseLoader", 1),
        found_pose("retrieve", 1, "a woman standing with both hands on the hips"),
        *drawn(Link("retrieve"), 1, SIZE),
        Node("show_pose", "PreviewImage", 1, {"images": Link("render")}, title="The pose"),
        Node(
            "align",
            "EnsembleAnchorAlign",
            2,
            {
                "structure": Link("render"),
                "appearance": Link("load_alice"),
                "structure_pose": Link("retrieve"),
                "appearance_mask": Link("mask_alice"),
            },
        ),
        Node(
            "redraw",
            "EnsemblePoseRender",
            2,
            {"pose": Link("align", 3), "width": SIZE[0], "height": SIZE[1]},
            title="Draw the aligned pose",
        ),
        Node("show_align", "PreviewImage", 2, {"images": Link("align", 2)}, title="Boxes and result"),
        Node("show_report", "PreviewAny", 2, {"source": Link("align", 1)}, title="Report"),
        *tiny_sdxl_models(3),
        text(
            "positive",
            3,
            "a woman in a red striped shirt and blue trousers with her hands on her hips on a street",
            "Prompt",
        ),
        text("appearance", 3, "a woman in a red striped shirt and blue trousers in a room", "What the picture shows"),
        text("negative", 3, "blurry", "Negative prompt"),
        *controlled(4, Link("positive"), Link("negative"), Link("redraw")),
        cache("alice", 4, Link("appearance"), Link("load_alice"), Link("mask_alice")),
        Node(
            "infusion",
            "EnsembleAppearanceInfusion",
            4,
            {"model": Link("unet"), "appearances.appearance0": Link("cache_alice")},
        ),
        *sdxl_sampling(
            5, "infusion", Link("controlled"), Link("controlled", 1), SIZE, "ensemble/seal_identity_and_pose"
        ),
        Node(
            "maps",
            "EnsembleInfusionMaps",
            5,
            {"inspection": Link("infusion", 1), "samples": Link("sampler"), "image": Link("decode")},
        ),
        Node("show_maps", "PreviewImage", 5, {"images": Link("maps")}, title="Where it was infused"),
    ],
    notes=[
        Note(3, "Which models", CONTROL_NOTE, 380),
        Note(
            4,
            "What to try",
            """**delta_end**: more of the picture's own texture. **tau_end**: lower lets more of the drawing take it over.

**top_k** 1 is sharp; larger values blur.

*Align to Appearance* moves the pose to where the person stands in the picture, which helps the model match the two.

Paper: SeAl, semantic alignment for pose-invariant identity.""",
            260,
        ),
    ],
)

HALF = PAIR[0] // 2


def half(name: str, left: int) -> list[Node]:
    """A mask of the left or right half of the picture."""
    white = {"value": 1.0, "width": HALF, "height": PAIR[1]}
    black = {"value": 0.0, "width": PAIR[0], "height": PAIR[1]}
    placed = {
        "destination": Link(f"black_{name}"),
        "source": Link(f"white_{name}"),
        "x": left,
        "y": 0,
        "operation": "add",
    }
    return [
        Node(f"white_{name}", "SolidMask", 2, white, title="Half"),
        Node(f"black_{name}", "SolidMask", 2, black, title="Picture"),
        Node(f"half_{name}", "MaskComposite", 2, placed, title=f"Where {name} is"),
    ]


TWO_SUBJECTS = Workflow(
    name="seal_two_subjects",
    columns=("1. Pictures", "2. Poses", "3. Where each one is", "4. Models and text", "5. Infusion", "6. Picture"),
    nodes=[
        *picture("alice", "ensemble_alice.png", "Left"),
        *picture("bruno", "ensemble_bruno.png", "Right"),
        Node("database", "EnsemblePoseDatabaseLoader", 1),
        found_pose("pose_alice", 1, "a woman waving with the right hand"),
        found_pose("pose_bruno", 1, "a man sitting with arms crossed"),
        Node(
            "layout",
            "EnsemblePoseLayout",
            1,
            {
                "poses.pose0": Link("pose_alice"),
                "poses.pose1": Link("pose_bruno"),
                "width": PAIR[0],
                "height": PAIR[1],
            },
        ),
        *drawn(Link("layout"), 1, PAIR),
        Node("show_pose", "PreviewImage", 1, {"images": Link("render")}, title="The poses"),
        *half("alice", 0),
        *half("bruno", HALF),
        *tiny_sdxl_models(3),
        text(
            "positive",
            3,
            "a woman in a red striped shirt and blue trousers waving and a man in a green t-shirt and white trousers"
            " sitting with crossed arms on a beach",
            "Prompt",
        ),
        text("appearance", 3, "a photo of a person", "What the pictures show"),
        text("negative", 3, "blurry", "Negative prompt"),
        *controlled(4, Link("positive"), Link("negative"), Link("render")),
        cache("alice", 4, Link("appearance"), Link("load_alice"), Link("mask_alice")),
        cache("bruno", 4, Link("appearance"), Link("load_bruno"), Link("mask_bruno")),
        Node(
            "infusion",
            "EnsembleAppearanceInfusion",
            4,
            {
                "model": Link("unet"),
                "appearances.appearance0": Link("cache_alice"),
                "appearances.appearance1": Link("cache_bruno"),
                "masks.mask0": Link("half_alice"),
                "masks.mask1": Link("half_bruno"),
            },
        ),
        *sdxl_sampling(5, "infusion", Link("controlled"), Link("controlled", 1), PAIR, "ensemble/seal_two_subjects"),
        Node(
            "maps",
            "EnsembleInfusionMaps",
            5,
            {"inspection": Link("infusion", 1), "samples": Link("sampler"), "image": Link("decode")},
        ),
        Node("show_maps", "PreviewImage", 5, {"images": Link("maps")}, title="Where each was infused"),
    ],
    notes=[
        Note(3, "Which models", CONTROL_NOTE, 380),
        Note(
            4,
            "Two people",
            """Each appearance is infused only where its mask is white: **appearance 0** with **mask 0**, and so on. Any mask does:
drawn by hand, from SAM, or from AnyStory's routing, which finds the people by itself (see *anystory_routes_seal*).""",
            170,
        ),
    ],
)

RESTYLE_BY_TEXT = Workflow(
    name="seal_restyle_by_text",
    columns=("1. Picture", "2. Models and text", "3. Infusion and Delta-Bridge", "4. Picture"),
    nodes=[
        *picture("alice", "ensemble_alice.png", "Who"),
        *tiny_sdxl_models(1),
        text("positive", 1, "a woman in a blue coat and blue trousers in a room", "What it shall become"),
        text("appearance", 1, "a woman in a red striped shirt and blue trousers in a room", "What the picture shows"),
        text("quality", 1, "high quality, sharp", "Quality words"),
        text("negative", 1, "blurry", "Negative prompt"),
        cache("alice", 2, Link("appearance"), Link("load_alice"), Link("mask_alice")),
        Node(
            "infusion",
            "EnsembleAppearanceInfusion",
            2,
            {"model": Link("unet"), "appearances.appearance0": Link("cache_alice")},
        ),
        Node(
            "guider",
            "EnsembleDeltaBridgeGuider",
            2,
            {
                "model": Link("infusion"),
                "positive": Link("positive"),
                "appearance_positive": Link("appearance"),
                "negative": Link("negative"),
                "cfg": 4.0,
                "quality_positive": Link("quality"),
            },
        ),
        Node("noise", "RandomNoise", 3, {"noise_seed": 1}),
        Node("which", "KSamplerSelect", 3, {"sampler_name": "euler"}),
        Node("steps", "BasicScheduler", 3, {"model": Link("unet"), "scheduler": "normal", "steps": 20, "denoise": 1.0}),
        Node("latent", "EmptyLatentImage", 3, {"width": SIZE[0], "height": SIZE[1]}, title="Empty Latent"),
        Node(
            "sampler",
            "SamplerCustomAdvanced",
            3,
            {
                "noise": Link("noise"),
                "guider": Link("guider"),
                "sampler": Link("which"),
                "sigmas": Link("steps"),
                "latent_image": Link("latent"),
            },
        ),
        *decoded(3, Link("sampler"), "ensemble/seal_restyle"),
    ],
    notes=[
        Note(1, "Which models", TINY_SDXL_NOTE, 300),
        Note(
            2,
            "What to try",
            """The picture shows a red striped shirt, the prompt asks for a blue coat. Delta-Bridge pushes along the **difference of
the two prompts**, smoothed so that it moves shapes and colours and leaves texture to the infusion.

**strength** 0 switches it off. **blur_rounds**: more rounds, coarser changes. **end_percent**: after that, only the infusion works.

Quality words go into their own box: they improve the picture and never count as a difference.""",
            280,
        ),
    ],
)

WORKFLOWS = (IDENTITY_AND_POSE, TWO_SUBJECTS, RESTYLE_BY_TEXT)
