"""Heat maps of infusion from records written by hand."""

from __future__ import annotations

import torch

from comfyui_ensemble.attention_patches.infusion_maps import (
    InfusionRecord,
    heat,
    layers,
    share_infused,
    steps,
)
from comfyui_ensemble.attention_patches.unet_call import UNetCall
from comfyui_ensemble.attention_patches.unet_layers import AttentionLayer

FINE, COARSE = (AttentionLayer(("output", number, 0), 64, 2, 32, 384, factor) for number, factor in ((3, 2), (0, 4)))


def numbers(grid, rows=1, fill=0, **places):
    found = torch.full((rows, *grid), fill, dtype=torch.uint8)
    for name, (y, x) in places.items():
        found[:, y, x] = int(name[1:])
    return found


def record(progress, found, parts=((0, 0, 8, 8),), batch=1, appearances=2) -> InfusionRecord:
    return InfusionRecord.of(UNetCall(progress, (8, 8), parts, batch), appearances, found)


def test_each_layer_and_step_counts_the_same():
    records = [
        record(0.5, {COARSE: numbers((2, 2), a1=(0, 0)), FINE: numbers((4, 4))}),
        record(1.0, {COARSE: numbers((2, 2), a2=(0, 0)), FINE: numbers((4, 4), fill=1)}),
    ]
    assert steps(records) == [0.5, 1.0] and layers(records) == [COARSE, FINE]
    maps = heat(records, [COARSE, FINE])
    assert maps.shape == (1, 2, 8, 8)
    assert maps[0, 0, :4, :4].eq(0.5).all() and maps[0, 0, 4:].eq(0.25).all()  # of two layers in two steps
    assert maps[0, 1, :4, :4].eq(0.25).all() and not maps[0, 1, 4:].any()
    assert heat(records, [FINE])[0, 0].eq(0.5).all()
    assert heat(records[1:], [COARSE])[0, 1, :4, :4].eq(1).all()
    assert share_infused(records, [COARSE]) == 2 / 8 and share_infused(records, [COARSE, FINE]) == 18 / 40


def test_pictures_of_a_batch_and_prompts_of_a_call():
    found = torch.stack([numbers((2, 2), fill=fill)[0] for fill in (1, 0, 1, 2)])  # positive of two pictures, negative
    maps = heat([record(1.0, {COARSE: found}, ((0, 0, 8, 8),) * 2, 2)], [COARSE])
    assert maps.shape == (2, 2, 8, 8)
    assert maps[0, 0].eq(1).all() and maps[1, 0].eq(0).all() and maps[1, 1].eq(0.5).all()


def test_areas_lie_where_they_belong():
    parts = ((0, 0, 8, 4), (0, 4, 8, 4))
    maps = heat([record(1.0, {COARSE: torch.stack([numbers((2, 1), fill=1)[0], numbers((2, 1))[0]])}, parts)], [COARSE])
    assert maps[0, 0, :, :4].eq(1).all() and not maps[0, 0, :, 4:].any()
    apart = [record(1.0, {COARSE: numbers((2, 1), fill=1)}, parts[:1]), record(1.0, {COARSE: numbers((2, 2))})]
    assert heat(apart, [COARSE])[0, 0, :, :4].eq(0.5).all()


def test_pieces_without_a_known_place_are_left_out():
    maps = heat([record(1.0, {COARSE: numbers((2, 1), rows=2, fill=1)}, (None, (0, 4, 8, 4)))], [COARSE])
    assert not maps[0, 0, :, :4].any() and maps[0, 0, :, 4:].eq(1).all()
