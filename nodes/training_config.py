"""The input `config` of the training nodes."""

from __future__ import annotations

from typing import TypeVar

from comfy_api.latest import io

from ..training.config import TrainingConfig, read_config
from ..training.errors import TrainingError
from .errors import InputError, sentence_or_true

Config = TypeVar("Config", bound=TrainingConfig)


def config_input(config: type[TrainingConfig], settings: str) -> io.String.Input:
    """The input `config` of a training node; `settings` are some that an artist may want to change, in words."""
    return io.String.Input(
        "config",
        default="",
        multiline=True,
        tooltip="Settings as JSON; what is left out is as in the paper, and so is all of it where this is empty."
        f" {settings} Another name for the run begins another one; the same name continues it.",
        placeholder=f'{{"run": "my_run", "steps": {config.steps}, "learning_rate": {config.learning_rate}}}',
    )


def check_config(node: str, config: type[Config], text: str) -> Config:
    """The settings of a node's input `config`.

    Raises:
        InputError: they will not do.
    """
    try:
        return read_config(config, text)
    except TrainingError as error:
        raise InputError(node, "config", str(error)) from None


def config_sentence(node: str, config: type[TrainingConfig], text: str | None) -> bool | str:
    """What `validate_inputs` returns about the input `config`."""
    return sentence_or_true(lambda given: check_config(node, config, given), text)
