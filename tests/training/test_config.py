"""The settings of a training and what is said about bad ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from comfyui_ensemble.training.config import TrainingConfig, at_least, read_config
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.schedule import learning_rate


@dataclass(frozen=True)
class Extended(TrainingConfig):
    learning_rate: float = 5e-6
    rank: int = 512
    kind: Literal["one", "two"] = "one"
    layers: tuple[int, ...] = ()
    ratios: dict[str, int] = field(default_factory=lambda: {"face": 2})
    limit: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "rank", 1)


def test_what_is_left_out_keeps_its_default() -> None:
    assert read_config(Extended, "") == read_config(Extended, "{}") == read_config(Extended, {}) == Extended()


def test_every_kind_of_setting_is_read() -> None:
    text = json.dumps(
        {
            "run": "anna and ben",
            "steps": 7,
            "learning_rate": 1,
            "betas": [0.8, 0.95],
            "precision": "fp16",
            "gradient_checkpointing": True,
            "kind": "two",
            "layers": [1, 2, 3],
            "ratios": {"bag": 1},
            "limit": 2,
        }
    )
    config = read_config(Extended, text)
    assert config == Extended(
        run="anna and ben",
        steps=7,
        learning_rate=1.0,
        betas=(0.8, 0.95),
        precision="fp16",
        gradient_checkpointing=True,
        kind="two",
        layers=(1, 2, 3),
        ratios={"bag": 1},
        limit=2.0,
    )
    assert isinstance(config.learning_rate, float)
    assert read_config(Extended, {"limit": None}).limit is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[1]", "no settings by name"),
        ('{"lerning_rate": 1}', "there is no setting 'lerning_rate'; 'learning_rate' is probably meant"),
        ('{"zzz": 1}', "there is no setting 'zzz'; there are: run, steps"),
        ('{"learning_rate": NaN}', "learning_rate is nan; give a number above 0"),
        ('{"learning_rate": Infinity}', "learning_rate is inf; give a number above 0"),
        ('{"learning_rate": 0}', "learning_rate is 0.0; give a number above 0"),
        ('{"learning_rate": "1e-4"}', 'learning_rate is "1e-4"; it must be a number'),
        ('{"steps": 2.5}', "steps is 2.5; it must be a whole number"),
        (f'{{"steps": {10**400}}}', "steps is larger than any number that makes sense"),
        (f'{{"learning_rate": {10**400}}}', "learning_rate is larger than any number that makes sense"),
        ('{"steps": true}', "steps is true; it must be a whole number"),
        ('{"steps": 0}', "steps is 0; it must be at least 1"),
        ('{"weight_decay": NaN}', "weight_decay is nan; it must be at least 0"),
        ('{"keep": 0}', "keep is 0; it must be at least 1"),
        ('{"gradient_checkpointing": 1}', "gradient_checkpointing is 1; it must be true or false"),
        ('{"betas": [0.9]}', "betas is [0.9]; it must be a list of 2"),
        ('{"betas": [0.9, NaN]}', "betas holds nan; it must be at least 0 and below 1"),
        ('{"ema_decay": 1}', "ema_decay holds 1.0; it must be at least 0 and below 1"),
        ('{"schedule": "cosign"}', "schedule is 'cosign'; choose one of: constant, linear, cosine"),
        ('{"kind": "three"}', "kind is 'three'; choose one of: one, two"),
        ('{"condition_dropout": 1.5}', "condition_dropout is 1.5; it must lie between 0 and 1"),
        ('{"run": "../over"}', "run is '../over', which cannot be a folder's name"),
        ('{"run": ""}', "run is '', which cannot be a folder's name"),
        ('{"rank": 0}', "rank is 0; it must be at least 1"),
        ('{"layers": 3}', "layers is 3; it must be a list"),
        ('{"layers": ["a"]}', 'layers is "a"; it must be a whole number'),
        ('{"ratios": 2}', "ratios is 2; it must be values by name"),
        ('{"ratios": {"bag": "much"}}', 'ratios, bag is "much"; it must be a whole number'),
    ],
)
def test_what_will_not_do_is_said_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(TrainingError) as raised:
        read_config(Extended, text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value) and not str(raised.value).endswith(".")
    assert raised.value.input_name == "config"


def test_constructing_checks_as_reading_does() -> None:
    with pytest.raises(TrainingError, match="learning_rate is nan"):
        TrainingConfig(learning_rate=float("nan"))


def test_what_may_differ_on_resumption() -> None:
    one = Extended(steps=1, save_every=1, keep=1, picture_every=1, workers=1, gradient_checkpointing=True)
    assert one.unchangeable() == Extended().unchangeable()
    assert one.unchangeable() == json.loads(json.dumps(one.unchangeable()))
    for name in ("learning_rate", "batch_size", "accumulation", "seed", "rank", "precision", "ema_decay"):
        assert name in one.unchangeable()


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        config = read_config(
            TrainingConfig, {"steps": 12, "warmup_steps": 4, "learning_rate": 2.0, "schedule": schedule}
        )
        return [learning_rate(config, step) for step in range(12)]

    rise = [0.5, 1.0, 1.5, 2.0]
    assert rates("constant") == pytest.approx([*rise, *[2.0] * 8])
    assert rates("linear") == pytest.approx([*rise, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    cosine = [2.0, 1.9238795, 1.7071068, 1.3826834, 1.0, 0.6173166, 0.2928932, 0.0761205]
    assert rates("cosine") == pytest.approx([*rise, *cosine], abs=1e-6)
