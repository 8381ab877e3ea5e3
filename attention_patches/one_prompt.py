"""A guider for looking at a picture instead of making one."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch


class OnePrompt(comfy.samplers.CFGGuider):
    """Predicts with the positive prompt alone; nothing that changes guidance has a say, so that its wrappers are passed by."""

    def outer_predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: Any = None, seed: int | None = None
    ) -> torch.Tensor:
        conds = [self.conds["positive"]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})[0]
