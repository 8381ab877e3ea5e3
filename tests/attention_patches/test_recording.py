"""Records are found by the latent that came out, and a broken run leaves none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from comfyui_ensemble.attention_patches import recording as recording_module
from comfyui_ensemble.attention_patches.recording import RUNS_KEPT, BoundedRecording, Recording


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


@dataclass(frozen=True)
class Step:
    number: int
    size: int


def test_a_run_forgets_its_first_records_where_it_grows_too_large(monkeypatch):
    monkeypatch.setattr(recording_module, "RUN_BYTES", 250)
    recording: BoundedRecording[Step] = BoundedRecording()
    recording.keep(Step(0, 100))  # no run is going on

    def sampler(*sizes: int):
        for number, size in enumerate(sizes, start=1):
            recording.keep(Step(number, size))
        return latent(0)

    for sizes, kept in (((100,) * 5, [4, 5]), ((100, 100, 1000), [3]), ((1000, 100), [2])):
        recording.outer_sample(sampler, *sizes)
        assert [step.number for step in recording.find(latent(0))] == kept
