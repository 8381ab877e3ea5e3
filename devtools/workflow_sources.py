"""The bundled workflows, described once; devtools/build_workflows.py writes the two forms of each."""

from __future__ import annotations

from pathlib import Path

from devtools.workflow_forms import Link, Node, Note, Workflow

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

TINY_NOTE = """The models chosen here are the **tiny ones that come with the pack**, so that the graph runs on any machine
in seconds. Their weights are random, so **the picture is noise**; everything else (cast, retrieved pose, positions) is
real.

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


def tiny_models(column: int) -> list[Node]:
    """Text encoder, diffusion model and VAE of the embedded default."""
    return [
        Node("clip", "EnsembleMiniLMTextEncoder", column),
        Node("unet", "UNETLoader", column, {"unet_name": "ensemble_tiny_flux.safetensors"}),
        Node("vae", "VAELoader", column, {"vae_name": "ensemble_tiny_vae.safetensors"}),
    ]


def sampling(column: int, model: str, positive: Link, size: tuple[int, int], prefix: str) -> list[Node]:
    """Empty latent, sampler, decoder and saved picture; FLUX needs no negative prompt, so cfg is 1."""
    return [
        Node("negative", "CLIPTextEncode", column - 2, {"clip": Link("clip"), "text": ""}, title="Empty prompt"),
        Node("latent", "EmptySD3LatentImage", column, {"width": size[0], "height": size[1]}, title="Empty Latent"),
        Node(
            "sampler",
            "KSampler",
            column,
            {
                "model": Link(model),
                "positive": positive,
                "negative": Link("negative"),
                "latent_image": Link("latent"),
                "seed": 1,
                "steps": 20,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
            },
        ),
        Node("decode", "VAEDecode", column, {"samples": Link("sampler"), "vae": Link("vae")}),
        Node("save", "SaveImage", column, {"images": Link("decode"), "filename_prefix": prefix}),
    ]


ASTRA_POSE_AND_IDENTITY = Workflow(
    name="astra_pose_and_identity",
    columns=("1. Pictures", "2. Cast", "3. Pose", "4. Models and text", "5. References and positions", "6. Picture"),
    nodes=[
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red jumper with a yellow bag", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green jumper with a yellow hat", "alice"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_bruno")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        Node("prompt", "PrimitiveStringMultiline", 2, {"value": "two people shaking hands"}, title="Prompt"),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        Node("retrieve", "EnsemblePoseRetriever", 2, {"pose_db": Link("database"), "prompt": Link("prompt")}),
        Node("show_match", "PreviewAny", 2, {"source": Link("retrieve", 1)}, title="Matched prompt"),
        Node("show_score", "PreviewAny", 2, {"source": Link("retrieve", 2)}, title="Score"),
        Node(
            "render", "EnsemblePoseRender", 2, {"pose": Link("retrieve"), "width": 256, "height": 256, "line_width": 2}
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
                "reference_size": 160,
            },
        ),
        Node("guidance", "FluxGuidance", 4, {"conditioning": Link("references")}),
        Node("europe", "EnsembleEURoPE", 4, {"model": Link("unet"), "layout": Link("references", 1)}),
        *sampling(5, "europe", Link("guidance"), (256, 256), "ensemble/astra"),
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
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red jumper with a yellow bag", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green jumper with a yellow hat", "alice"),
        *subject(3, "ensemble_chiyo.png", "chiyo", "a woman in a purple jumper", "bruno"),
        Node("sheet", "EnsembleCastSheet", 1, {"cast": Link("subject_chiyo")}),
        Node("show_sheet", "PreviewImage", 1, {"images": Link("sheet")}, title="The cast"),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        *[node for name, action in ACTIONS.items() for node in own_pose(name, action)],
        Node(
            "layout",
            "EnsemblePoseLayout",
            2,
            {f"poses.pose{number}": Link(f"retrieve_{name}") for number, name in enumerate(ACTIONS)}
            | {"width": 384, "height": 256},
        ),
        Node("render", "EnsemblePoseRender", 2, {"pose": Link("layout"), "width": 384, "height": 256, "line_width": 2}),
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
                "text": "a woman in a red jumper with a yellow bag waving, a man in a green jumper with a yellow hat sitting on"
                " a chair, a woman in a purple jumper dancing",
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
                "reference_size": 160,
            },
        ),
        Node("europe", "EnsembleEURoPE", 4, {"model": Link("unet"), "layout": Link("references", 1)}),
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
        *sampling(5, "dsm", Link("guidance"), (384, 256), "ensemble/astra_multi"),
    ],
    notes=[
        Note(3, "Which models", TINY_NOTE, 420),
        Note(
            4,
            "What to try",
            """**Everybody has an own pose**: the first pose of *Lay Out Poses* belongs to the first subject of the cast, and so on.
Connect *boxes* to say where each one stands.

**DSM** tells the words of the prompt who is meant. The tiny adapter is untrained, which means that it changes nothing; a
trained one belongs in `models/ensemble_dsm`.

A LoRA that was trained together with an adapter goes through the stock *LoraLoaderModelOnly*, before *EURoPE Positions*.""",
            320,
        ),
    ],
)

POSE_BROWSER = Workflow(
    name="pose_browser",
    columns=("1. Search", "2. Neighbours", "3. One of them"),
    nodes=[
        Node(
            "prompt",
            "PrimitiveStringMultiline",
            0,
            {"value": "cinematic photo of two friends dancing, golden hour, 85mm"},
            title="Prompt",
        ),
        Node("query", "EnsemblePromptNormalizer", 0, {"prompt": Link("prompt")}),
        Node("show_query", "PreviewAny", 0, {"source": Link("query")}, title="What shapes the pose"),
        Node("database", "EnsemblePoseDatabaseLoader", 0),
        Node("browse", "EnsemblePoseBrowser", 1, {"pose_db": Link("database"), "prompt": Link("query"), "count": 10}),
        Node("save_sheet", "SaveImage", 1, {"images": Link("browse"), "filename_prefix": "ensemble/poses"}),
        Node("retrieve", "EnsemblePoseRetriever", 2, {"pose_db": Link("database"), "prompt": Link("query"), "rank": 2}),
        Node("show_match", "PreviewAny", 2, {"source": Link("retrieve", 1)}, title="Matched prompt"),
        Node("show_score", "PreviewAny", 2, {"source": Link("retrieve", 2)}, title="Score"),
        Node("render", "EnsemblePoseRender", 2, {"pose": Link("retrieve"), "width": 512, "height": 512}),
        Node("show_pose", "PreviewImage", 2, {"images": Link("render")}, title="The pose"),
    ],
    notes=[
        Note(
            0,
            "What to try",
            """*Normalize Prompt* keeps what shapes a pose and drops the rest: style, light, lens.

Look at the sheet, pick a match, and set its number as **rank** on *Retrieve Pose*. Set **threshold** between the scores that
fit and those that do not.""",
        )
    ],
)

POSE_DATABASE_FACTORY = Workflow(
    name="pose_database_factory",
    columns=("1. Prompts", "2. Pictures", "3. Are they good?", "4. Into a database"),
    nodes=[
        Node(
            "variations",
            "EnsemblePromptVariations",
            0,
            {
                "action": "a man waving",
                "attributes": "young\nelderly",
                "environments": "in a park\non a stage",
                "cameras": "seen from the front\nseen from the side",
                "count": 4,
                "seed": 0,
            },
        ),
        *tiny_models(0),
        Node(
            "encode", "CLIPTextEncode", 1, {"clip": Link("clip"), "text": Link("variations")}, title="Encode the prompt"
        ),
        Node("latent", "EmptySD3LatentImage", 1, {"width": 256, "height": 256}, title="Empty Latent"),
        Node(
            "sampler",
            "KSampler",
            1,
            {
                "model": Link("unet"),
                "positive": Link("encode"),
                "negative": Link("encode"),
                "latent_image": Link("latent"),
                "seed": 0,
                "steps": 4,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
            },
        ),
        Node("decode", "VAEDecode", 1, {"samples": Link("sampler"), "vae": Link("vae")}),
        Node("save", "SaveImage", 1, {"images": Link("decode"), "filename_prefix": "ensemble/factory"}),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        Node(
            "pose",
            "EnsemblePoseRetriever",
            2,
            {"pose_db": Link("database"), "prompt": Link("variations"), "threshold": 0.0},
            title="Stands in for the detector",
        ),
        Node("quality", "EnsemblePoseQuality", 2, {"pose": Link("pose"), "prompt": Link("variations")}),
        Node("report", "PreviewAny", 2, {"source": Link("quality", 2)}, title="Report"),
        Node("score", "EnsembleAlignmentScore", 2, {"subject": 0.9, "interaction": 0.9, "detail": 0.7}),
        Node(
            "render", "EnsemblePoseRender", 2, {"pose": Link("quality"), "width": 256, "height": 256, "line_width": 2}
        ),
        Node("show_pose", "PreviewImage", 2, {"images": Link("render")}, title="The poses"),
        Node(
            "add",
            "EnsemblePoseDatabaseAdd",
            3,
            {
                "pose_db": Link("database"),
                "pose": Link("quality"),
                "prompt": Link("variations"),
                "tags": "source: pose factory",
                "passed": Link("quality", 1),
                "accepted": Link("score", 1),
            },
        ),
        Node("save_database", "EnsemblePoseDatabaseSave", 3, {"pose_db": Link("add"), "name": "my_poses"}),
    ],
    notes=[
        Note(
            3,
            "From pictures to poses",
            """Every prompt becomes a picture, every good picture a pose, and the poses a database of your own in
`models/pose_databases`.

**With real models**, replace the node *Stands in for the detector* by *Extract Pose* (OpenPose) or by the host's SDPose nodes,
fed by *VAE Decode*. The three scores come from a vision-language model: connect the answer of *Generate Text* to **answer**
on *Alignment Score*.

For thousands of prompts use the command, which resumes where it was stopped:
`python -m comfyui_ensemble.pose_db.factory run --help`""",
            360,
        )
    ],
)

WORKFLOW_SOURCES = (ASTRA_POSE_AND_IDENTITY, ASTRA_MULTI_SUBJECT, POSE_BROWSER, POSE_DATABASE_FACTORY)
