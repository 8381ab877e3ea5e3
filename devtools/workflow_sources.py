"""The bundled workflows, described once; devtools/build_workflows.py writes the two forms of each."""

from __future__ import annotations

from pathlib import Path

from devtools.workflow_forms import Link, Node, Note, Workflow

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

TINY_NOTE = """The models chosen here are the **tiny ones that come with the pack**, so that the graph runs on any machine in seconds.
Their weights are random until trained ones are bundled, so **the picture is noise**; everything else (cast, retrieved pose,
positions) is real.

**For real pictures**, with FLUX.1 dev:
- Load Diffusion Model: `flux1-dev.safetensors`
- Load VAE: `ae.safetensors`
- replace *MiniLM Text Encoder* by *DualCLIPLoader* (`clip_l`, `t5xxl`, type flux)
- 1024 x 1024 in *Empty Latent* and *Render Pose*, reference_size 512
"""


def subject(number: int, file: str, name: str, description: str, earlier: str | None) -> list[Node]:
    """Load a picture with its alpha channel and add it to the cast; the nodes' keys end in `name`."""
    inputs = {
        "image": Link(f"load_{name}"),
        "mask": Link(f"mask_{name}"),
        "name": name,
        "description": description,
        "category": "person",
    }
    if earlier:
        inputs["cast"] = Link(f"subject_{earlier}")
    return [
        Node(f"load_{name}", "LoadImage", 0, {"image": file}, title=f"Picture {number}"),
        Node(f"mask_{name}", "InvertMask", 0, {"mask": Link(f"load_{name}", 1)}, title="Alpha to mask"),
        Node(f"subject_{name}", "EnsembleSubject", 1, inputs, title=f"Subject {number}"),
    ]


ASTRA_POSE_AND_IDENTITY = Workflow(
    name="astra_pose_and_identity",
    columns=("1. Pictures", "2. Cast", "3. Pose", "4. Models and text", "5. References and positions", "6. Picture"),
    nodes=[
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red jumper with a yellow bag", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green jumper with a yellow hat", "alice"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_bruno")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        Node(
            "prompt",
            "PrimitiveStringMultiline",
            2,
            {"value": "two people shaking hands"},
            title="Prompt",
        ),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        Node("retrieve", "EnsemblePoseRetriever", 2, {"pose_db": Link("database"), "prompt": Link("prompt")}),
        Node("show_match", "PreviewAny", 2, {"source": Link("retrieve", 1)}, title="Matched prompt"),
        Node("show_score", "PreviewAny", 2, {"source": Link("retrieve", 2)}, title="Score"),
        Node(
            "render", "EnsemblePoseRender", 2, {"pose": Link("retrieve"), "width": 256, "height": 256, "line_width": 2}
        ),
        Node("show_pose", "PreviewImage", 2, {"images": Link("render")}, title="The pose"),
        Node("clip", "EnsembleMiniLMTextEncoder", 3),
        Node(
            "positive", "CLIPTextEncode", 3, {"clip": Link("clip"), "text": Link("prompt")}, title="Encode the prompt"
        ),
        Node("negative", "CLIPTextEncode", 3, {"clip": Link("clip"), "text": ""}, title="Empty prompt"),
        Node("unet", "UNETLoader", 3, {"unet_name": "ensemble_tiny_flux.safetensors"}),
        Node("vae", "VAELoader", 3, {"vae_name": "ensemble_tiny_vae.safetensors"}),
        Node(
            "references",
            "EnsembleReferenceLatents",
            4,
            {
                "conditioning": Link("positive"),
                "vae": Link("vae"),
                "cast": Link("subject_bruno"),
                "pose_image": Link("render"),
                "reference_size": 160,
            },
        ),
        Node("guidance", "FluxGuidance", 4, {"conditioning": Link("references")}),
        Node("europe", "EnsembleEURoPE", 4, {"model": Link("unet"), "layout": Link("references", 1)}),
        Node("latent", "EmptySD3LatentImage", 5, {"width": 256, "height": 256}, title="Empty Latent"),
        Node(
            "sampler",
            "KSampler",
            5,
            {
                "model": Link("europe"),
                "positive": Link("guidance"),
                "negative": Link("negative"),
                "latent_image": Link("latent"),
                "seed": 1,
                "steps": 20,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
            },
        ),
        Node("decode", "VAEDecode", 5, {"samples": Link("sampler"), "vae": Link("vae")}),
        Node("save", "SaveImage", 5, {"images": Link("decode"), "filename_prefix": "ensemble/astra"}),
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

WORKFLOW_SOURCES = (ASTRA_POSE_AND_IDENTITY,)
