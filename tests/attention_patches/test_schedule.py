"""The progress of a run is the inverse of the host's own percentages, for every kind of sampling."""

from __future__ import annotations

import comfy.model_sampling
import pytest
import torch

from comfyui_ensemble.attention_patches.schedule import sampling_progress


def shifted_flow() -> comfy.model_sampling.ModelSamplingDiscreteFlow:
    sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=3.0)
    return sampling


@pytest.mark.parametrize(
    "make",
    [
        comfy.model_sampling.ModelSamplingDiscrete,
        lambda: comfy.model_sampling.ModelSamplingDiscrete(zsnr=True),
        comfy.model_sampling.ModelSamplingContinuousEDM,
        shifted_flow,
        comfy.model_sampling.ModelSamplingFlux,
    ],
)
def test_inverts_the_hosts_percentages(make):
    sampling = make()
    for percent in (0.01, 0.2, 0.35, 0.6, 0.99):
        assert sampling_progress(sampling, float(sampling.percent_to_sigma(percent))) == pytest.approx(
            percent, abs=1e-3
        )
    assert sampling_progress(sampling, float(sampling.sigma_max)) == pytest.approx(0, abs=1e-3)
    assert sampling_progress(sampling, 0.0) == pytest.approx(1, abs=1e-3)
    sigmas = torch.linspace(float(sampling.sigma_max), 0, 30).tolist()
    found = [sampling_progress(sampling, sigma) for sigma in sigmas]
    assert found == sorted(found)
