"""Attention Inspector and Attention Maps as nodes, behind the host's sampler."""

from __future__ import annotations

import re
from typing import Any

import comfy.sample
import node_helpers
import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.dam_file import load_dam, write_dam
from comfyui_ensemble.attention_patches.dam_generator import DAMConfig, fresh_dam
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference
from comfyui_ensemble.nodes.contact_sheet import LINE, MARGIN, TEXT_LINES, TILE
from comfyui_ensemble.nodes.dam import EnsembleDAM
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.heat_map import BAR, colours, heat_map, percent
from comfyui_ensemble.nodes.inspector import ALIKE, EACH, EnsembleAttentionInspector, EnsembleAttentionMaps

SIZE = (8, 12)  # of the latent: 4 x 6 tokens
LAYOUT = Layout(
    (Reference("subject", (3, 4), "alice"), Reference("subject", (2, 5), "a | b"), Reference("pose", (4, 6)))
)


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory):
    config, generator = DAMConfig(256, 16, 2, 6), torch.Generator().manual_seed(1)
    path = tmp_path_factory.mktemp("dam") / "a.safetensors"
    weights = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in fresh_dam(config, 0).items()}
    write_dam(path, weights, config)
    return load_dam(path)


def cond(clip, text: str, layout: Layout | None = None, **options: Any):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if layout is not None:
        latents = [torch.randn(1, 16, 2 * h, 2 * w) for h, w in layout.grids]
        options = {"reference_latents": latents, LAYOUT_KEY: layout, **options}
    return node_helpers.conditioning_set_values(encoded, options)


def inspect(model, layout=LAYOUT, block=4, step=1) -> Any:
    return EnsembleAttentionInspector.execute(model, layout, block, step).result


def run(model, positive, negative, batch=1, seed=3, size=SIZE) -> dict[str, torch.Tensor]:
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    out = comfy.sample.sample(model, noise, 3, 1.0, "euler", "simple", positive, negative, latent, seed=seed)
    return {"samples": out}


def show(inspection, samples, image=None, **options) -> Any:
    return EnsembleAttentionMaps.execute(inspection, samples, image, **options).result


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table below its head."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("---")]


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    return (rows * (TILE + TEXT_LINES * LINE + MARGIN) + MARGIN, columns * (TILE + MARGIN) + MARGIN)


def test_a_table_and_a_map_for_every_reference(flux, clip, dam):
    positive = cond(clip, "alice and bob dance", LAYOUT, **{SPANS_KEY: {"alice": [(1, 2)]}})
    executed: Any = EnsembleDAM.execute(flux, dam, 1.0)
    model, inspection = inspect(executed.result[0])
    image, table = show(inspection, run(model, positive, cond(clip, "")), torch.rand(1, 64, 96, 3))
    assert image.shape == (1, *sheet_size(4, 2), 3) and image.dtype == torch.float32  # three pairs
    assert image.min() >= 0 and image.max() <= 1
    assert table.startswith("Attention of single block 2 in step 1 of 3\n")
    head, *rows = cells(table)
    assert head == ["The picture looks at", "mean without DAM", "mean with DAM", "peak without DAM", "peak with DAM"]
    assert [row[0] for row in rows] == [
        "alice",
        r"a \| b",
        "pose map",
        "the words of alice",
        "the picture itself",
        "other words",
    ]
    shares = np.array([[float(cell.removesuffix(" %")) for cell in row[1:]] for row in rows])
    np.testing.assert_allclose(shares[:, :2].sum(axis=0), 100, atol=0.5)
    assert (shares[:, 2:] >= shares[:, :2]).all() and not np.allclose(shares[:, 0], shares[:, 1], atol=0.05)
    (observation,) = inspection.find(torch.zeros(1))
    seen = observation.first()
    means = [100 * float(values[0, :, 0].mean()) for values in (seen.without_dam, seen.shares)]
    np.testing.assert_allclose(shares[0, :2], means, rtol=6e-3)


def test_without_dam_there_is_one_map_each(flux, clip):
    model, inspection = inspect(flux)
    samples = run(model, cond(clip, "a duel", LAYOUT), cond(clip, ""))
    image, table = show(inspection, samples)
    assert image.shape == (1, *sheet_size(2, 2), 3)
    assert cells(table)[0] == ["The picture looks at", "mean", "peak"] and "DAM" not in table
    each, alike = (show(inspection, samples, scale=scale)[0] for scale in (EACH, ALIKE))
    assert torch.equal(each, image) and not torch.equal(each, alike)


def test_a_batch_has_a_sheet_and_a_table_for_every_picture(flux, clip):
    model, inspection = inspect(flux)
    samples = run(model, cond(clip, "a duel", LAYOUT), cond(clip, ""), batch=2)
    image, table = show(inspection, samples, torch.rand(2, 32, 48, 3))
    assert len(image) == 2 and not torch.equal(image[0], image[1])
    assert "| Picture 1 looks at |" in table and "| Picture 2 looks at |" in table
    with pytest.raises(InputError) as error:
        show(inspection, samples, torch.rand(1, 32, 48, 3))
    assert str(error.value) == "Attention Maps, image: it holds 1 pictures, the run made 2; decode the same samples."


def test_each_run_is_shown_by_its_own_samples(flux, clip):
    model, inspection = inspect(flux)
    runs = [run(model, cond(clip, "a duel", LAYOUT), cond(clip, ""), seed=seed) for seed in range(3)]
    tables = [show(inspection, samples)[1] for samples in runs]
    assert len(set(tables)) == 3
    assert show(inspection, runs[0])[1] == tables[0]


def message(inspection, samples) -> str:
    with pytest.raises(InputError) as error:
        show(inspection, samples)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_shown(flux, clip):
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    model, inspection = inspect(flux, step=3)
    assert message(inspection, run(flux, positive, negative)) == (
        "Attention Maps, samples: they come from another model; connect what a sampler makes with Attention Inspector's"
        " model."
    )
    assert message(inspection, run(model, positive, negative)) == (
        "Attention Maps, inspection: step 3 was never reached, the run had 3 (0 to 2); choose one of these."
    )
    assert message(inspection, run(flux, positive, negative, size=(8, 8))) == (
        "Attention Maps, samples: they have 4 x 4 tokens, the inspected run 4 x 6; connect what the sampler makes with"
        " Attention Inspector's model."
    )
    model, inspection = inspect(flux)
    assert message(inspection, run(model, cond(clip, "a duel"), negative)) == (
        "Attention Maps, inspection: the prompt carries no references of its layout; connect conditioning and layout of"
        " one Reference Latents."
    )
    half = node_helpers.conditioning_set_values(positive, {"area": (4, 4, 0, 0), "strength": 1.0})
    assert message(inspection, run(model, half + cond(clip, "a town"), negative, seed=4)) == (
        "Attention Maps, inspection: the prompt with the references is for a part of the picture only; use one for the"
        " whole picture."
    )
    early = node_helpers.conditioning_set_values(positive, {"start_percent": 0.9, "end_percent": 1.0})
    assert message(inspection, run(model, early + cond(clip, "a town"), negative, seed=5)) == (
        "Attention Maps, inspection: nothing was asked of the prompt with the references in step 1; choose another step."
    )


def test_what_cannot_be_inspected(flux, sdxl):
    with pytest.raises(InputError, match=r"Attention Inspector, model: it is a \w+ model; connect a FLUX model\."):
        inspect(sdxl)
    with pytest.raises(
        InputError, match=r"Attention Inspector, layout: it has no references; put someone into the cast"
    ):
        inspect(flux, Layout(()))
    for block in (8, -1):
        with pytest.raises(InputError) as error:
            inspect(flux, block=block)
        assert str(error.value) == (
            f"Attention Inspector, block: there is no block {block}; this model has 2 double and 6 single blocks, choose"
            " one of 0 to 7."
        )


def test_blocks_are_counted_through(flux):
    spots = [
        inspect(flux, block=block)[0].get_wrappers("outer_sample", "ensemble_attention_inspector") for block in (1, 2)
    ]
    named = [(wrapper.__self__.spot.block_type, wrapper.__self__.spot.block_index) for (wrapper,) in spots]
    assert named == [("double", 1), ("single", 0)]


def test_colours_grow_lighter():
    ramp = colours(np.linspace(0, 1, 101, dtype=np.float32))
    luminance = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()
    assert np.array_equal(colours(np.array([-1.0, 2.0])), ramp[[0, -1]])


@pytest.mark.parametrize("picture", [None, (30, 90), (90, 30), (1, 1)])
def test_a_map_lies_where_its_values_are(picture):
    values = np.zeros((3, 9), dtype=np.float32)
    values[1, 7] = 0.5
    shape = values.shape if picture is None else picture
    drawn = heat_map(values, 0.5, None if picture is None else np.full((*picture, 3), 0.5, dtype=np.float32))
    assert drawn.shape == (TILE, TILE, 3)
    scale = min(TILE / shape[1], (TILE - BAR) / shape[0])
    height, width = round(shape[0] * scale), round(shape[1] * scale)
    shown = drawn[TILE - BAR - height : TILE - BAR, :width]
    y, x = np.unravel_index(shown.sum(axis=-1).argmax(), (height, width))
    assert abs(y / height - 0.5) < 0.1 and abs(x / width - 7.5 / 9) < 0.06


def test_shares_in_words():
    assert [percent(share) for share in (1.0, 0.12345, 0.0004, 1e-7, 0.0)] == [
        "100 %",
        "12.3 %",
        "0.04 %",
        "<0.001 %",
        "0 %",
    ]
    assert heat_map(np.zeros((2, 2), dtype=np.float32), 0.0, None).max() <= 1  # nothing anywhere


def test_the_contract():
    inspector, maps = EnsembleAttentionInspector.define_schema(), EnsembleAttentionMaps.define_schema()
    assert inspector.node_id == "EnsembleAttentionInspector" and maps.node_id == "EnsembleAttentionMaps"
    assert [i.id for i in inspector.inputs] == ["model", "layout", "block", "step"]
    assert [i.id for i in maps.inputs] == ["inspection", "samples", "image", "scale"]
    assert [output.display_name for output in inspector.outputs] == ["model", "inspection"]
    assert [output.display_name for output in maps.outputs] == ["image", "table"]
    assert all(entry.tooltip for entry in [*inspector.inputs, *maps.inputs])
