"""The work is small, varied, and still what was bundled."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from devtools.reliability.workload import LENGTHS, bundled, bundled_names, job, kinds, rounds, small


@pytest.mark.parametrize("name", bundled_names())
def test_small_changes_sizes_and_steps_alone(name):
    before, after = bundled(name), small(bundled(name), steps=3)
    assert before.keys() == after.keys()
    for number, node in after.items():
        assert node["class_type"] == before[number]["class_type"]
        for key, value in node["inputs"].items():
            if key in LENGTHS and not isinstance(value, list):
                assert value % 16 == 0 and 64 <= value <= max(64, before[number]["inputs"][key])
            elif key == "steps":
                assert value == 3
            elif key == "config":
                assert json.loads(str(value))["steps"] == 3
            elif key not in ("x", "y", "step"):
                assert value == before[number]["inputs"][key]


def test_a_job_has_its_own_seed_and_names():
    one, other = (job(kinds()["astra_pose_and_identity"], name, seed) for name, seed in (("one", 1), ("other", 2)))
    samplers = [next(n for n in prompt.values() if n["class_type"] == "KSampler") for prompt in (one, other)]
    assert [sampler["inputs"]["seed"] for sampler in samplers] == [1, 2]
    assert [prompt["27"]["inputs"]["filename_prefix"] for prompt in (one, other)] == ["one/astra", "other/astra"]
    training = job(kinds()["train_astra"], "one", 1)
    assert json.loads(training["6"]["inputs"]["config"])["run"] == "one_train_astra"
    assert training["7"]["inputs"]["name"] == "one"


def test_rounds_have_every_kind_once_and_end_alike():
    made = rounds(["a", "b", "c", "z"], 10, seed=3, last="z")
    assert [len(names) for names in made] == [4, 4, 2] and all(names[-1] == "z" for names in made)
    assert all(Counter(names) == Counter("abcz") for names in made[:2])
    assert made == rounds(["a", "b", "c", "z"], 10, seed=3, last="z") != rounds(["a", "b", "c", "z"], 10, 4, "z")
