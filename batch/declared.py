"""What a server says about the inputs of a node class (GET /object_info), and whether a cell's value fits one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BatchError, closest

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC, GROWING = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3"
SEEDS = ("seed", "noise_seed")
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload", "mesh_upload")
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

ClassInfo = Mapping[str, Any]


@dataclass(frozen=True)
class Declared:
    """One input of a node class.

    Attributes:
        name: as the API form has it; an input of a chosen option is called `option.input`.
        type: the host's name of its type; COMBO for every list of choices.
        options: what the host says besides: default, min, max, options and so on.
        required: whether the node cannot do without.
    """

    name: str
    type: str
    options: Mapping[str, Any]
    required: bool = True

    @property
    def is_widget(self) -> bool:
        """Whether a value can be set, or only a connection be made."""
        return self.type in WIDGETS and not self.options.get("forceInput")

    @property
    def is_file(self) -> bool:
        """Whether the value is a file in the server's input folder."""
        return any(self.options.get(name) for name in UPLOADS) and self.options.get("image_folder", "input") == "input"

    @property
    def is_seed(self) -> bool:
        """Whether ComfyUI's page would draw a new number after each run."""
        named = self.name.rsplit(".", 1)[-1] in SEEDS
        return self.type == "INT" and bool(self.options.get("control_after_generate", named))

    @property
    def default(self) -> Any:
        """What a node that was just made has here."""
        if "default" in self.options:
            return self.options["default"]
        if self.type == "COMBO":
            return next(iter(self.options.get("options") or ()), "")
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")


def declared_inputs(info: ClassInfo, values: Mapping[str, Any]) -> Iterator[Declared]:
    """The inputs of a class in their order. Which ones follow a choice that brings inputs of its own depends on what
    `values` holds for it when the next one is asked for."""
    yield from _declared(info["input"], "", values)


def _declared(groups: Mapping[str, Any], prefix: str, values: Mapping[str, Any]) -> Iterator[Declared]:
    for kind in ("required", "optional"):
        for short, spec in (groups.get(kind) or {}).items():
            name, type_ = prefix + short, spec[0]
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            required = kind == "required"
            if isinstance(type_, list):  # nodes of the first generation have the choices in place of a type
                yield Declared(name, "COMBO", {**options, "options": type_}, required)
            elif type_ == DYNAMIC:
                inputs = {option["key"]: option["inputs"] for option in options["options"]}
                yield Declared(name, "COMBO", {**options, "options": list(inputs)}, required)
                yield from _declared(inputs.get(values.get(name)) or {}, f"{name}.", values)
            else:
                yield Declared(name, type_, options, required)


def cell_value(declared: Declared, cell: Any) -> Any:
    """A cell of the jobs file, text or JSON, as the value of an input.

    Raises:
        BatchError: it does not fit; says what would.
    """
    if isinstance(cell, (list, dict)):
        raise BatchError(f"{cell!r} is no single value")
    if declared.type == "INT":
        return _in_range(declared, _integer(cell))
    if declared.type == "FLOAT":
        return _in_range(declared, _number(cell))
    if declared.type == "BOOLEAN":
        return _truth(cell)
    if declared.type == "COMBO":
        return _choice(declared, cell)
    return cell if isinstance(cell, str) else str(cell)


def _integer(cell: Any) -> int:
    if isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d{1,30}\s*", cell):
        return int(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    raise BatchError(f"'{cell}' is no whole number")


def _number(cell: Any) -> float:
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    hint = "; write a point instead of the comma" if isinstance(cell, str) and "," in cell else ""
    raise BatchError(f"'{cell}' is no number{hint}")


def _in_range(declared: Declared, number: float) -> float:
    low, high = declared.options.get("min"), declared.options.get("max")
    if (low is not None and number < low) or (high is not None and number > high):
        limits = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        raise BatchError(f"{number} is out of range; it must be {' and '.join(limits)}")
    return number


def _truth(cell: Any) -> bool:
    text = str(cell).strip().casefold()
    if text in YES or text in NO:
        return text in YES
    raise BatchError(f"'{cell}' is neither true nor false")


def _choice(declared: Declared, cell: Any) -> Any:
    choices = declared.options.get("options")
    if not isinstance(choices, list) or "remote" in declared.options:
        return cell  # the server alone knows the choices
    for choice in choices:
        if choice == cell or str(choice) == str(cell).strip():
            return choice
    if not choices:
        raise BatchError(f"'{cell}' is not there: the server has no file of this kind")
    near = closest(str(cell), map(str, choices))
    raise BatchError(f"'{cell}' is no choice here{near or ' (' + _some(choices) + ')'}")


def _some(choices: list[Any]) -> str:
    shown = ", ".join(map(str, choices[:8]))
    return shown if len(choices) <= 8 else f"{shown} and {len(choices) - 8} more"
