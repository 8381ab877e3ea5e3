"""The settings of a training, read from JSON: the same text in a node's `config` and in the command line's file.

Every trainer has a subclass of `TrainingConfig`, a frozen dataclass with the paper's numbers as defaults and its own settings
added. Where a node shows them it is in a module without the trainer, which only a training loads. Types that `read_config`
understands: int, float, bool, str, Literal, tuples, and dicts with text as keys. Literals are checked here; other values of its
own a subclass checks in `__post_init__`, where it calls the inherited one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..models_info.files import is_file_name
from .errors import TrainingError

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["fp32", "bf16", "fp16"]
SavedAs = Literal["fp32", "bf16"]

LARGEST = 2**64  # of whole numbers; nothing that is counted here comes near it, and arithmetic fails beyond 1e308
# What may differ between a run and its continuation: none of these changes what a step computes.
FREE_TO_CHANGE = frozenset(
    {"steps", "save_every", "keep", "picture_every", "workers", "gradient_checkpointing", "saved_as"}
)


@dataclass(frozen=True)
class TrainingConfig:
    """What every training has in common.

    Attributes:
        run: the run's name; checkpoints of the same name are continued.
        steps: optimizer steps.
        batch_size: samples of one forward call, of all processes together.
        accumulation: forward calls of one optimizer step.
        learning_rate, weight_decay, betas: AdamW's; decay spares biases and norms.
        warmup_steps: steps over which the learning rate rises from 0.
        schedule: the learning rate after that; linear and cosine fall to 0 at the last step.
        clip_norm: greatest norm of the gradient; 0 for no limit.
        ema_decay: of the averaged weights, which are the ones saved and shown; 0 for no average.
        precision: of the forward and backward pass; weights and optimizer stay float32.
        gradient_checkpointing: less memory for more time.
        seed: of everything drawn at random.
        save_every: steps between checkpoints; 0 for the last one alone.
        keep: checkpoints kept.
        picture_every: steps between sample pictures; 0 for none.
        workers: threads that load and encode ahead of the step.
        augment_references: vary reference pictures from epoch to epoch.
        condition_dropout: share of samples that learn without their condition.
        saved_as: numbers of the matrices in the files of weights; a checkpoint always has what is trained.
    """

    run: str = "training"
    steps: int = 1_000
    batch_size: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    seed: int = 0
    save_every: int = 500
    keep: int = 3
    picture_every: int = 0
    workers: int = 2
    augment_references: bool = True
    condition_dropout: float = 0.0
    saved_as: SavedAs = "fp32"

    def __post_init__(self) -> None:
        if not is_file_name(self.run):
            raise TrainingError(
                f"run is '{self.run}', which cannot be a folder's name; use letters, digits, - and _, no folders"
            )
        for name in ("steps", "batch_size", "accumulation", "keep"):
            at_least(self, name, 1)
        for name in ("weight_decay", "warmup_steps", "clip_norm", "seed", "save_every", "picture_every", "workers"):
            at_least(self, name, 0)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate is {self.learning_rate}; give a number above 0, such as 0.0001")
        for name, value in (*(("betas", beta) for beta in self.betas), ("ema_decay", self.ema_decay)):
            if not 0 <= value < 1:
                raise TrainingError(f"{name} holds {value}; it must be at least 0 and below 1")
        share(self, "condition_dropout")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                choices = ", ".join(map(str, get_args(hint)))
                raise TrainingError(f"{name} is '{getattr(self, name)}'; choose one of: {choices}")

    def unchangeable(self) -> dict[str, Any]:
        """The settings that a continued run must find as they were, as JSON holds them."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}


Config = TypeVar("Config", bound=TrainingConfig)
Settings = TypeVar("Settings")


def at_least(config: TrainingConfig, name: str, least: float) -> None:
    """Raise `TrainingError` unless the setting is a finite number of at least `least`."""
    value = getattr(config, name)
    if not (math.isfinite(value) and value >= least):
        raise TrainingError(f"{name} is {value}; it must be at least {least}")


def share(config: TrainingConfig, name: str) -> None:
    """Raise `TrainingError` unless the setting lies between 0 and 1."""
    value = getattr(config, name)
    if not 0 <= value <= 1:
        raise TrainingError(f"{name} is {value}; it must lie between 0 and 1")


def read_config(cls: type[Config], source: str | Mapping[str, Any]) -> Config:
    """The settings that JSON text (or what it says) gives; what it leaves out keeps its default, and so does empty text.

    Raises:
        TrainingError: it is no JSON object, or a setting is unknown, of another type, or out of range.
    """
    settings = _parse(source) if isinstance(source, str) else source
    known = get_type_hints(cls)
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"'{close[0]}' is probably meant" if close else f"there are: {', '.join(known)}"
            raise TrainingError(f"there is no setting '{name}'; {remedy}")
    return cls(**{name: _convert(name, value, known[name]) for name, value in settings.items()})


def read_config_file(path: Path | None, read: Callable[[str], Settings]) -> Settings:
    """What `read` makes of the text that a command's --config names; of none, where there is no file.

    Raises:
        TrainingError: the file cannot be read, or `read` does not take its text.
    """
    if path is None:
        return read("")
    try:
        return read(_text(path))
    except TrainingError as error:
        raise TrainingError(f"--config {path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TrainingError("it is not in UTF-8; save it again in that encoding") from None
    except OSError as error:
        raise TrainingError(
            f"it cannot be read ({error.strerror}); give a JSON file of settings, or leave --config out"
        ) from None


def _parse(text: str) -> Mapping[str, Any]:
    if not text.strip():
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f'it is not JSON ({error}); write it like {{"steps": 1000, "seed": 1}}') from None
    if not isinstance(settings, dict):
        raise TrainingError('it holds no settings by name; write it like {"steps": 1000, "seed": 1}')
    return settings


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or a `TrainingError`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value  # __post_init__ knows the choices
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _convert(name, value, next(each for each in inner if each is not type(None)))
    if origin is tuple:
        return _convert_tuple(name, value, inner)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(f"{name}, {key}", each, inner[1]) for key, each in value.items()}
    if isinstance(value, int) and abs(value) > LARGEST:
        raise TrainingError(f"{name} is larger than any number that makes sense; stay below {LARGEST}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _WORDS and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise TrainingError(f"{name} is {json.dumps(value)}; it must be {_WORDS[hint]}")
    if origin is dict:
        raise TrainingError(f"{name} is {json.dumps(value)}; it must be values by name")
    return value


_WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text between quotes",
}


def _convert_tuple(name: str, value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = len(inner) == 2 and inner[1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (any_length or len(value) == len(inner)):
        raise TrainingError(
            f"{name} is {json.dumps(value)}; it must be a list{'' if any_length else f' of {len(inner)}'}"
        )
    hints = [inner[0]] * len(value) if any_length else inner
    return tuple(_convert(name, each, hint) for each, hint in zip(value, hints, strict=True))
