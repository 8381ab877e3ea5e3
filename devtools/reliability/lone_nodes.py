"""A workflow for every node of the pack: the node, what it needs, and a look at all that it gives out."""

from __future__ import annotations

from typing import Any

from devtools.reliability.mutations import PACK, ObjectInfo, declared_inputs
from devtools.reliability.workload import Prompt

MAX_DEPTH = 12
# The first node that gives a type is not always one that is ready at once.
SUPPLIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "IMAGE": ("LoadImage", {"image": "ensemble_alice.png"}),
    "MASK": ("SolidMask", {"value": 1.0, "width": 512, "height": 512}),
    "MODEL": ("EnsembleTinySDXL", {}),
    "CLIP": ("EnsembleMiniLMTextEncoder", {}),
    "VAE": ("VAELoader", {"vae_name": "ensemble_tiny_sdxl_vae.safetensors"}),
    "CLIP_VISION": ("EnsembleTinyCLIPVision", {}),
    "CONDITIONING": ("CLIPTextEncode", {"text": "a person"}),
    "LATENT": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
    "SIGMAS": ("BasicScheduler", {"scheduler": "normal", "steps": 2, "denoise": 1.0}),
    "POSE_KEYPOINT": ("EnsemblePoseRetriever", {"prompt": "a man waving", "threshold": 0.0, "rank": 1}),
    "BOUNDING_BOX": ("PrimitiveBoundingBox", {}),
    "ENSEMBLE_CAST": ("EnsembleSubject", {"name": "alice", "description": "a woman", "category": "person"}),
    "ENSEMBLE_INSPECTION": ("EnsembleAppearanceInfusion", {}),
    "ENSEMBLE_WEIGHTS": ("EnsembleTrainASTRA", {"config": '{"run": "lone", "steps": 1, "lora_rank": 4}'}),
}
# What a node can do without, but does more with.
WELCOME = {"EnsembleSubject": ("mask",)}
FLUX_SUPPLIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "MODEL": ("UNETLoader", {"unet_name": "ensemble_tiny_flux.safetensors", "weight_dtype": "default"}),
    "VAE": ("VAELoader", {"vae_name": "ensemble_tiny_vae.safetensors"}),
    "ENSEMBLE_INSPECTION": ("EnsembleAttentionInspector", {}),
}
SAMPLES = {"width": 96, "height": 96, "resolution": 64, "reference_resolution": 64, "reference_size": 64, "block": 0}
SETTINGS = '{"run": "lone", "steps": 1, "batch_size": 1, "lora_rank": 4}'
SMALL = {  # the settings of those that have others
    "EnsembleTrainAnyStoryEncoder": '{"run": "lone", "steps": 1, "batch_size": 1, "queries": 5, "qformer_width": 32,'
    ' "qformer_heads": 2, "qformer_layers": 1, "router_width": 128}',
    "EnsembleTrainAnyStoryRouter": '{"run": "lone", "steps": 1, "batch_size": 1}',
    "EnsembleBuildTrainingData": "",
}
NEEDS_FLUX = (
    "EnsembleReferenceLatents",
    "EnsembleEURoPE",
    "EnsembleConditionPositions",
    "EnsembleDSM",
    "EnsembleDAM",
    "EnsembleAttentionInspector",
    "EnsembleAttentionMaps",
    "EnsembleTrainASTRA",
    "EnsembleTrainOneForAll",
    "EnsembleSaveWeights",
)


class Builder:
    """Puts a workflow together from the end to the beginning."""

    def __init__(self, object_info: ObjectInfo, flux: bool) -> None:
        self.object_info = object_info
        self.prompt: Prompt = {}
        self.made: dict[str, list[Any]] = {}
        self.suppliers = {**SUPPLIERS, **(FLUX_SUPPLIERS if flux else {})}

    def supplied(self, kind: str, depth: int) -> list[Any] | None:
        """A link to an output of this type; None where no node gives it."""
        if kind not in self.made:
            name, values = self.suppliers.get(kind, (self._giver(kind), {}))
            if not name or name not in self.object_info or depth > MAX_DEPTH:
                return None
            number = self.add(name, values, depth + 1)
            self.made[kind] = [number, self.object_info[name]["output"].index(kind)]
        return list(self.made[kind])

    def _giver(self, kind: str) -> str:
        ours = (name for name in self.object_info if name.startswith(PACK))
        return next((name for name in ours if kind in self.object_info[name]["output"]), "")

    def add(self, name: str, values: dict[str, Any], depth: int = 0) -> str:
        """Add a node with all that it needs; its number."""
        inputs: dict[str, Any] = {}
        required = self.object_info[name]["input"].get("required", {})
        for key, (kind, options) in declared_inputs(self.object_info[name]).items():
            if key in values:
                inputs[key] = values[key]
            elif kind == "COMFY_AUTOGROW_V3":
                inputs |= self._grown(key, options, depth)
            elif isinstance(kind, list) or kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"):
                inputs[key] = self._value(name, key, kind, options)
            elif (key in required or key in WELCOME.get(name, ())) and (
                link := self.supplied(kind.split(",")[0], depth)
            ):
                inputs[key] = link
        number = str(len(self.prompt) + 1)
        while number in self.prompt:
            number = str(int(number) + 1)
        self.prompt[number] = {"class_type": name, "inputs": {k: v for k, v in inputs.items() if v is not None}}
        return number

    def _value(self, name: str, key: str, kind: Any, options: dict[str, Any]) -> Any:
        if key == "config":
            return SMALL.get(name, SETTINGS)
        if key in SAMPLES and kind == "INT":
            return SAMPLES[key]
        choices = kind if isinstance(kind, list) else options.get("options") or [None]
        if isinstance(kind, list) or kind == "COMBO":
            return options.get("default", choices[0])
        return options.get("default", {"INT": 1, "FLOAT": 1.0, "STRING": "a man waving", "BOOLEAN": True}[kind])

    def _grown(self, key: str, options: dict[str, Any], depth: int) -> dict[str, Any]:
        """One of the inputs that there may be many of, where it has to be there."""
        template = options["template"]
        if not template.get("min"):
            return {}
        declared = next(iter(template["input"]["required"].values()))
        link = self.supplied(declared[0], depth)
        name = template["names"][0] if "names" in template else f"{template['prefix']}0"
        return {f"{key}.{name}": link} if link else {}


def lone_node(name: str, object_info: ObjectInfo) -> Prompt:
    """A workflow around one node."""
    builder = Builder(object_info, name in NEEDS_FLUX)
    number = builder.add(name, {})
    for slot in range(len(object_info[name]["output"])):
        builder.prompt[f"look{slot}"] = {"class_type": "PreviewAny", "inputs": {"source": [number, slot]}}
    return builder.prompt


def pack_nodes(object_info: ObjectInfo) -> list[str]:
    """The pack's nodes."""
    return sorted(name for name in object_info if name.startswith(PACK))
