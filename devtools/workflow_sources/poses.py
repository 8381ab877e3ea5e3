"""The pose database: looking into it, and making one's own."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.common import tiny_models

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

WORKFLOWS = (POSE_BROWSER, POSE_DATABASE_FACTORY)
