"""Evaluation: pictures measured where they are made."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node, Note, Workflow
from devtools.workflow_sources.astra import PROMPT
from devtools.workflow_sources.common import REFERENCE, SIDE, TINY_NOTE, sampling, subject, tiny_models

SIZE = (SIDE, SIDE)
ACTION = "two people standing and chatting with each other"

EVALUATE_PICTURES = Workflow(
    name="evaluate_pictures",
    columns=("1. Pictures", "2. Cast", "3. Pose", "4. Models and text", "5. Picture", "6. Measures", "7. Report"),
    nodes=[
        *subject(1, "ensemble_alice.png", "alice", "a woman in a red striped shirt and blue trousers", None),
        *subject(2, "ensemble_bruno.png", "bruno", "a man in a green t-shirt and white trousers", "alice"),
        Node("both", "ImageBatch", 1, {"image1": Link("load_alice"), "image2": Link("load_bruno")}, title="References"),
        Node("prompt", "PrimitiveStringMultiline", 2, {"value": PROMPT}, title="Prompt"),
        Node("database", "EnsemblePoseDatabaseLoader", 2),
        Node("retrieve", "EnsemblePoseRetriever", 2, {"pose_db": Link("database"), "prompt": ACTION}),
        Node(
            "found",
            "EnsemblePoseRetriever",
            2,
            {"pose_db": Link("database"), "prompt": ACTION, "rank": 2},
            title="Stands for a detector",
        ),
        Node(
            "render",
            "EnsemblePoseRender",
            2,
            {"pose": Link("retrieve"), "width": SIZE[0], "height": SIZE[1], "line_width": 2},
        ),
        *tiny_models(3),
        Node("vision", "EnsembleTinyCLIPVision", 3),
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
        *sampling(4, "europe", Link("guidance"), SIZE, "ensemble/evaluate"),
        Node(
            "oks",
            "EnsembleOKS",
            5,
            {"pose": Link("found"), "reference_pose": Link("retrieve"), "subjects": "alice\nbruno", "key": "chat"},
        ),
        Node(
            "clip_i",
            "EnsembleSimilarity",
            5,
            {
                "image": Link("decode"),
                "metric": "CLIP-I",
                "reference": Link("both"),
                "subjects": "alice\nbruno",
                "clip_vision": Link("vision"),
                "key": "chat",
            },
        ),
        Node(
            "report",
            "EnsembleEvaluationReport",
            6,
            {
                "results.table0": Link("oks", 1),
                "results.table1": Link("clip_i", 1),
                "name": "evaluate_pictures",
                "images": Link("decode"),
            },
        ),
        Node("show_plot", "PreviewImage", 6, {"images": Link("report", 1)}, title="The plots"),
        Node("show_path", "PreviewAny", 6, {"source": Link("report")}, title="The page"),
    ],
    notes=[
        Note(3, "Which models", TINY_NOTE, 420),
        Note(
            5,
            "What to try",
            """*Pose Similarity (OKS)* compares the people found in the picture with the pose they should have. Here the second best
pose **stands for a detector**, so that the graph runs with nothing installed: replace it by *Extract Pose* on the decoded picture.

*Similarity*: **metric** chooses what is compared. *Tiny CLIP Vision* is random and its scores mean nothing; disconnect it and put
the published folders into `models/ensemble_encoders` (the help page says which). With **boxes**, **masks** or a **detector** each
subject is compared with its own reference, without them with the whole picture.

*Evaluation Report* writes one HTML page into ComfyUI's output folder, with all pictures, worst first, and CSV, JSON and Markdown
beside it. **compare_with** puts the papers' numbers next to yours.

Thousands of pictures: `python -m comfyui_ensemble.evaluation`, see docs/evaluation.md.""",
            460,
        ),
    ],
)

WORKFLOWS = (EVALUATE_PICTURES,)
