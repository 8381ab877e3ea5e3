"""Records are found by the latent that came out, and a broken run leaves none."""

from __future__ import annotations

import pytest
import torch

from comfyui_ensemble.attention_patches.recording import RUNS_KEPT, Recording


def run(recording: Recording, records: list, samples: torch.Tensor) -> torch.Tensor:
    def sampler(*args, **kwargs):
        assert recording.current is not None
        recording.current.records.extend(records)
        return samples

    return recording.outer_sample(sampler, "noise", seed=1)


def latent(seed: int, shape=(1, 4, 8, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_each_run_is_found_by_its_latent():
    recording = Recording()
    for seed in range(3):
        assert torch.equal(run(recording, [seed, -seed], latent(seed)), latent(seed))
    for seed in range(3):
        assert recording.find(latent(seed)) == [seed, -seed]
        assert recording.find(latent(seed).half()) == [seed, -seed]  # the host may keep latents in half precision
    assert recording.current is None


def test_a_latent_of_no_run_gets_the_latest():
    recording = Recording()
    assert recording.find(latent(0)) == []
    run(recording, ["first"], latent(1))
    run(recording, ["second"], latent(2))
    assert recording.find(latent(9)) == ["second"]
    assert recording.find(latent(9, (1, 4, 16, 16))) == ["second"]


def test_an_interrupted_run_leaves_nothing():
    recording = Recording()
    run(recording, ["whole"], latent(1))

    def interrupted(*args):
        assert recording.current is not None
        recording.current.records.append("half")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        recording.outer_sample(interrupted)
    assert recording.current is None
    assert recording.find(latent(1)) == ["whole"]


def test_old_runs_are_let_go():
    recording = Recording()
    for seed in range(RUNS_KEPT + 3):
        run(recording, [seed], latent(seed))
    assert recording.find(latent(0)) == [RUNS_KEPT + 2]
    assert recording.find(latent(3)) == [3]
