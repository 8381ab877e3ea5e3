"""What condition positions with CCPA take of a sampling step: the time of their hook over the time of the step it is in.

The hook takes so little that two whole steps, one with and one without it, differ more from one another by chance. Every
measurement begins with a run's first step, which makes the ids that the later ones take over, and has as many steps as
the paper.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.model_management
import comfy.sd
import torch

from comfyui_ensemble.attention_patches.condition_positions import CCPA, EQUATION_3, apply_condition_positions
from comfyui_ensemble.attention_patches.condition_slots import assign_slots
from comfyui_ensemble.attention_patches.flux_call import KEY as FLUX_CALL
from comfyui_ensemble.attention_patches.flux_call import FluxCall
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference
from comfyui_ensemble.attention_patches.reference_positions import KEY, Positions
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.bench_europe import STEPS, seconds, seconds_of_a_run
from devtools.bench_row import SHARE, Row

CATEGORIES = ("face", "upper garment", "lower garment", "bag")  # the paper's four
GRID = (16, 12)  # tokens
WORDS = 6  # of each description
PAPER_STEPS, RUNS = 25, 5
PROMISED = 0.01


def rows() -> list[Row]:
    """The share of a step of the tiny FLUX; a larger model's step takes longer, the hook hardly."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path, *_ = write_tiny_models(Path(folder))
        model = comfy.sd.load_diffusion_model(str(path))
    seen: list[dict[str, Any]] = []

    def note(args: dict[str, Any]) -> dict[str, Any]:
        seen.append(args)
        return args

    model.set_model_post_input_patch(note)  # comes before ours, so these are the hook's own arguments
    layout = Layout(tuple(Reference("subject", GRID, category, category) for category in CATEGORIES))
    patched = apply_condition_positions(model, layout, assign_slots(layout.references), CCPA, EQUATION_3)
    positive = _conditioning(layout)
    with torch.inference_mode():
        seconds_of_a_run(patched, positive)  # loads the model
        step = statistics.median(seconds_of_a_run(patched, positive) for _ in range(RUNS)) / STEPS
        hook: Any = patched.get_attachment(KEY)
        calls = [_as_a_run_begins(args) for args in seen]
        of_a_run = [seconds(lambda args=args: [hook.post_input(args) for _ in range(PAPER_STEPS)]) for args in calls]
    share = statistics.median(of_a_run) / PAPER_STEPS / step
    name = f"Condition positions with CCPA in a step of the tiny FLUX, {len(CATEGORIES)} references"
    device = str(comfy.model_management.get_torch_device())
    return [Row("condition_positions.step", name, SHARE, share, PROMISED, device=device)]


def _as_a_run_begins(args: dict[str, Any]) -> dict[str, Any]:
    options = args["transformer_options"]
    call = FluxCall.of(options)
    rows = [Positions(row.placements, row.text) for row in call.carried[KEY]]  # of which no ids have been made yet
    return {**args, "transformer_options": {**options, FLUX_CALL: replace(call, carried={KEY: rows})}}


def _conditioning(layout: Layout) -> Any:
    latents = [torch.randn(1, 16, 2 * height, 2 * width) for height, width in layout.grids]
    spans = {category: [(WORDS * place, WORDS * (place + 1))] for place, category in enumerate(CATEGORIES)}
    options = {"pooled_output": torch.randn(1, 384), "reference_latents": latents, LAYOUT_KEY: layout, SPANS_KEY: spans}
    return [[torch.randn(1, 32, 384), options]]
