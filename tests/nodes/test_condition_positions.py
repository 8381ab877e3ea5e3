"""Condition Positions as a node: its slots, its note, its messages, and once on a real server."""

from __future__ import annotations

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy_api.latest import ui

from comfyui_ensemble.attention_patches.condition_positions import CCPA, CONDITION_IDS, EQUATION_3, SLOT_CENTRE
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference
from comfyui_ensemble.attention_patches.reference_positions import KEY
from comfyui_ensemble.models_info.registry import TINY_FLUX, TINY_VAE
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.condition_positions import EnsembleConditionPositions
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.flux import EnsembleReferenceLatents
from devtools.server import ComfyServer

WORDS = ((1, 3),)
NAME = r"^Condition Positions, "


def layout_of(*categories: str, spans=WORDS) -> Layout:
    return Layout(
        tuple(
            Reference("pose", (8, 8))
            if category == "pose"
            else Reference("subject", (4, 4), f"s{number}", category, spans)
            for number, category in enumerate(categories)
        )
    )


def place(flux, layout, slots="", scheme=CCPA, anchor=EQUATION_3):
    return EnsembleConditionPositions.execute(flux, layout, scheme, anchor, slots)


def test_it_clones_the_model(flux):
    model, note = place(flux, layout_of("face", "bag"), scheme=CONDITION_IDS, anchor=SLOT_CENTRE).args
    (placement,) = model.get_attachment(KEY).placements
    assert model is not flux and flux.get_attachment(KEY) is None
    assert (placement.slots, placement.scheme, placement.item_anchor) == (((1,), (4,)), CONDITION_IDS, SLOT_CENTRE)
    assert note == "s0 (face): slot 1\ns1 (bag): slot 4"


def test_the_note_is_part_of_the_results(flux):
    output = place(flux, layout_of("face"))
    assert isinstance(output.ui, ui.PreviewText) and output.ui.as_dict() == {"text": ("s0 (face): slot 1",)}


def test_a_layout_without_references_is_the_model_itself(flux):
    model, note = place(flux, Layout(())).args
    assert model is flux and note == "The layout has no references, so there is nothing to place."


@pytest.mark.parametrize(
    "categories, lines",
    [
        (
            ["face", "dress", "pose"],
            ["s0 (face): slot 1", "s1 (dress): slots 2 and 3, given twice", "pose map: on the canvas"],
        ),
        (
            ["face", "face"],
            [
                "s0 (face): slot 1",
                "s1 (face): slot 5, because s0 has slot 1",
                "Outside the slot of its category a subject may look less like its picture: s1. Who comes first in the cast"
                " gets the slot; the slots input overrides that.",
            ],
        ),
        (
            ["upper garment", "upper garment"],
            ["s0 (upper garment): slot 2", "s1 (upper garment): slot 3, because s0 has slot 2"],
        ),
        (["upper garment", "dress"], ["s0 (upper garment): slot 2", "s1 (dress): slot 3, because s0 has slot 2"]),
        (
            ["upper garment", "lower garment", "dress"],
            [
                "s0 (upper garment): slot 2",
                "s1 (lower garment): slot 3",
                "s2 (dress): slot 5, because s0 has slot 2 and s1 has slot 3",
            ],
        ),
    ],
)
def test_the_note_says_who_stands_where_and_why(flux, categories, lines):
    assert place(flux, layout_of(*categories)).args[1].splitlines()[: len(lines)] == lines


def test_the_note_says_whose_words_are_not_known(flux):
    known, unknown = layout_of("face").references, layout_of("hat", "bag", spans=()).references
    mixed = Layout((*known, *(Reference("subject", (4, 4), f"u{n}", e.category) for n, e in enumerate(unknown))))
    sentence = (
        "The prompt does not say which of its words describe u0 and u1, so none are placed there (use Item Prompt)."
    )
    assert place(flux, mixed).args[1].splitlines()[-1] == sentence
    assert "Item Prompt" not in place(flux, mixed, scheme=CONDITION_IDS).args[1]
    assert "Item Prompt" not in place(flux, layout_of("pose")).args[1]


def test_chosen_slots(flux):
    model, note = place(flux, layout_of("other", "hat", "hat"), " s0 = 8 , 9,10\n\nhat=4\n").args
    assert model.get_attachment(KEY).placements[0].slots == ((8, 9, 10), (4,), (5,))
    assert note.splitlines()[:3] == [
        "s0 (other): slots 8, 9 and 10, given 3 times",
        "s1 (hat): slot 4",
        "s2 (hat): slot 5, because s1 has slot 4",
    ]


@pytest.mark.parametrize(
    "slots, message",
    [
        ("scarf", "slots: 'scarf' cannot be read; write a name or category and its slot: scarf = 8"),
        ("hat = six", "slots: 'hat = six' cannot be read"),
        ("hat = 0", "slots: 'hat = 0' will not do; slots are different numbers from 1 to 99"),
        ("hat = 2, 2", "slots: 'hat = 2, 2' will not do"),
        ("hat = 100", "slots: 'hat = 100' will not do"),
        (f"hat = {'9' * 5000}", "slots: 'hat = 9999"),
        ("hat = 2\nhat = 3", "slots: 'hat' is there twice; write one line with all its slots"),
    ],
)
def test_slots_that_cannot_be_read(flux, slots, message):
    with pytest.raises(InputError, match=NAME + message):
        place(flux, layout_of("hat"), slots)
    assert str(EnsembleConditionPositions.validate_inputs(slots)).startswith(f"Condition Positions, {message}")


def test_no_slots_are_fine():
    assert EnsembleConditionPositions.validate_inputs("") is True
    assert EnsembleConditionPositions.validate_inputs() is True  # while they come by a link


def test_slots_for_nobody_or_for_two(flux):
    with pytest.raises(InputError, match="slots: 'bob' is neither a category nor in the cast, which has s0, s1; check"):
        place(flux, layout_of("hat", "bag"), "bob = 3")
    with pytest.raises(InputError, match=NAME + "slots: slot 3 was chosen for 's0' and for 's1'; give them"):
        place(flux, layout_of("hat", "bag"), "s0 = 3\ns1 = 3")


def test_an_unknown_category(flux):
    with pytest.raises(InputError, match=NAME + "layout: 's0' is of category 'scarf', which has no slot; choose one"):
        place(flux, layout_of("scarf"))
    assert place(flux, layout_of("scarf"), "scarf = 8").args[1] == "s0 (scarf): slot 8"


def test_another_kind_of_model_is_refused(flux):
    config = comfy.supported_models.Flux2(
        {
            "image_model": "flux2",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 1,
            "hidden_size": 128,
            "num_heads": 1,
            "axes_dim": [32, 32, 32, 32],
            "theta": 2000,
            "mlp_ratio": 3.0,
            "depth": 1,
            "depth_single_blocks": 1,
            "context_in_dim": 32,
            "vec_in_dim": None,
            "qkv_bias": False,
            "guidance_embed": False,
            "txt_ids_dims": [3],
        }
    )
    model = comfy.model_patcher.ModelPatcher(config.get_model({}), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(InputError, match=NAME + r"model: it is a Flux2 model; connect a FLUX\.1 model\.$"):
        place(model, layout_of("face"))


def test_what_reference_latents_hands_over(clip, vae):
    """The layout knows the words of the first prompt, and every prompt carries the layout."""
    subjects = [("anna", "face"), ("gown", "dress")]
    cast = Cast(tuple(Subject(torch.rand(1, 64, 48, 3), None, name, name, category) for name, category in subjects))
    prompts = [
        [text, {**options, SPANS_KEY: spans}]
        for words, spans in (("anna in a gown", {"gown": [(4, 5)]}), ("anna", {"anna": [(1, 2)]}))
        for text, options in clip.encode_from_tokens_scheduled(clip.tokenize(words))
    ]
    conditioning, layout = EnsembleReferenceLatents.execute(prompts, vae, cast, 64).args
    assert [entry.spans for entry in layout.references] == [(), ((4, 5),)]
    assert all(options[LAYOUT_KEY] is layout for _, options in conditioning)
    assert layout == Layout(tuple(Reference("subject", (4, 3), name, category) for name, category in subjects))


def test_on_a_server(server: ComfyServer):
    """From pictures to a picture; the note is in the run's results."""

    def subject(name, category, **cast):
        image = {"image": ["image", 0], "name": name, "description": f"a {category}", "category": category}
        return {"class_type": "EnsembleSubject", "inputs": image | cast}

    positions = {"model": ["flux", 0], "layout": ["references", 1], "scheme": CCPA, "item_anchor": SLOT_CENTRE}
    sampler = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    history = server.run(
        {
            "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 9}},
            "anna": subject("anna", "face"),
            "cast": subject("gown", "dress", cast=["anna", 0]),
            "flux": {"class_type": "UNETLoader", "inputs": {"unet_name": TINY_FLUX.name, "weight_dtype": "default"}},
            "vae": {"class_type": "VAELoader", "inputs": {"vae_name": TINY_VAE.name}},
            "clip": {"class_type": "EnsembleMiniLMTextEncoder", "inputs": {}},
            "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a woman in a gown"}},
            "references": {
                "class_type": "EnsembleReferenceLatents",
                "inputs": {"conditioning": ["text", 0], "vae": ["vae", 0], "cast": ["cast", 0], "reference_size": 64},
            },
            "positions": {"class_type": "EnsembleConditionPositions", "inputs": positions},
            "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
            "sampler": {
                "class_type": "KSampler",
                "inputs": sampler
                | {"model": ["positions", 0], "positive": ["references", 0], "negative": ["text", 0]}
                | {"latent_image": ["latent", 0]},
            },
            "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0]}},
            "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "positions"}},
        }
    )
    (note,) = history["outputs"]["positions"]["text"]
    assert note.splitlines()[:2] == ["anna (face): slot 1", "gown (dress): slots 2 and 3, given twice"]
    assert history["outputs"]["save"]["images"]
