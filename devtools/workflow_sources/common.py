"""Parts that several workflows share."""

from __future__ import annotations

from devtools.workflow_forms import Link, Node

SIDE, REFERENCE = 128, 64  # pixels; what the tiny models were trained on
TINY_NOTE = """The models chosen here are the **tiny ones that come with the pack**, so that the graph runs on any machine in
seconds. They were trained for hours on one CPU core, on puppets in pictures of 128 x 128 pixels, and know nothing else.

**For real pictures**, with FLUX.1 dev:
- Load Diffusion Model: `flux1-dev.safetensors`
- Load VAE: `ae.safetensors`
- replace *MiniLM Text Encoder* by *DualCLIPLoader* (`clip_l`, `t5xxl`, type flux)
- 1024 x 1024 in *Empty Latent* and *Render Pose* (line_width 4), reference_size 512
- cfg 1 in *KSampler*: FLUX.1 dev has its guidance learned, the tiny one has not
"""


def subject(
    number: int, file: str, name: str, description: str, earlier: str | None, category: str = "person"
) -> list[Node]:
    """Load a picture with its alpha channel and add it to the cast; the nodes' keys end in `name`."""
    inputs = {
        "image": Link(f"load_{name}"),
        "mask": Link(f"mask_{name}"),
        "name": name,
        "description": description,
        "category": category,
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


def lora(column: int, model: str, name: str) -> Node:
    """A trained LoRA on the model."""
    return Node("lora", "LoraLoaderModelOnly", column, {"model": Link(model), "lora_name": name})


def sampling(column: int, model: str, positive: Link, size: tuple[int, int], prefix: str, seed: int = 1) -> list[Node]:
    """Empty latent, sampler, decoder and saved picture; the tiny FLUX has learned no guidance, so cfg is more than 1."""
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
                "seed": seed,
                "steps": 20,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "simple",
            },
        ),
        Node("decode", "VAEDecode", column, {"samples": Link("sampler"), "vae": Link("vae")}),
        Node("save", "SaveImage", column, {"images": Link("decode"), "filename_prefix": prefix}),
    ]


TINY_SDXL_NOTE = """The models chosen here are the **tiny ones that come with the pack**, so that the graph runs on any machine in
seconds. They were trained for an hour on a CPU, on puppets in pictures of 128 x 128 pixels, and know nothing else.

**For real pictures**, with SDXL or any checkpoint made from it:
- replace *Tiny SDXL*, *MiniLM Text Encoder* and *Load VAE* by one *Load Checkpoint*
- 1024 x 1024 in *Empty Latent*
"""


def tiny_sdxl_models(column: int) -> list[Node]:
    """Text encoder, diffusion model and VAE of the embedded default's SDXL."""
    return [
        Node("clip", "EnsembleMiniLMTextEncoder", column),
        Node("unet", "EnsembleTinySDXL", column),
        Node("vae", "VAELoader", column, {"vae_name": "ensemble_tiny_sdxl_vae.safetensors"}),
    ]


def text(key: str, column: int, words: str | Link, title: str) -> Node:
    """An encoded prompt."""
    return Node(key, "CLIPTextEncode", column, {"clip": Link("clip"), "text": words}, title=title)


def sdxl_sampling(
    column: int, model: str, positive: Link, negative: Link, size: tuple[int, int], prefix: str
) -> list[Node]:
    """Empty latent, sampler with a negative prompt, decoder and saved picture."""
    return [
        Node("latent", "EmptyLatentImage", column, {"width": size[0], "height": size[1]}, title="Empty Latent"),
        Node(
            "sampler",
            "KSampler",
            column,
            {
                "model": Link(model),
                "positive": positive,
                "negative": negative,
                "latent_image": Link("latent"),
                "seed": 3,
                "steps": 20,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
            },
        ),
        *decoded(column, Link("sampler"), prefix),
    ]


def decoded(column: int, samples: Link, prefix: str) -> list[Node]:
    """Decoder and saved picture."""
    return [
        Node("decode", "VAEDecode", column, {"samples": samples, "vae": Link("vae")}),
        Node("save", "SaveImage", column, {"images": Link("decode"), "filename_prefix": prefix}),
    ]
