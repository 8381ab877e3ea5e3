"""Condition positions: the cast in the slots of its categories, and its words beside it (One-for-All)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.condition_positions import (
    CCPA,
    EQUATION_3,
    ITEM_ANCHORS,
    SCHEMES,
    apply_condition_positions,
)
from ..attention_patches.condition_slots import CATEGORY_SLOTS, SlotError, Slots, assign_slots, own_slots
from ..attention_patches.layout import Layout, Reference
from .errors import InputError, sentence_or_true
from .flux import require_flux
from .notes import with_note
from .types import LAYOUT

MAX_SLOT = 99
_LINE = re.compile(r"(?P<who>.*\S)\s*=\s*(?P<slots>\d{1,9}(\s*,\s*\d{1,9})*)")


class EnsembleConditionPositions(io.ComfyNode):
    """Places every reference by what it shows, and the words of its description with it."""

    DISPLAY_NAME = "Condition Positions"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleConditionPositions",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="One-for-All's position ids: every reference stands in the slot of its category (face, upper garment,"
            " lower garment, bag, ...), and the words that describe it stand with it, so that nothing gets mixed up.",
            search_aliases=[
                "One-for-All",
                "condition id",
                "CCPA",
                "Center-aligned Cross-modal Position Association",
                "position ids",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A FLUX model, with a LoRA that was trained with condition ids."),
                LAYOUT.Input("layout", tooltip="From Reference Latents."),
                io.Combo.Input(
                    "scheme",
                    options=list(SCHEMES),
                    default=CCPA,
                    tooltip="condition ids + CCPA: references in their slots, their words with them (the paper's own)."
                    " condition ids: the references only. The other two are the paper's ablations: all references at one"
                    " point, or told apart by the first coordinate alone.",
                ),
                io.Combo.Input(
                    "item_anchor",
                    options=list(ITEM_ANCHORS),
                    default=EQUATION_3,
                    tooltip="Where the words of a description stand: where the paper's equation 3 puts them, or at the centre"
                    " of their reference, as its text says. Only for condition ids + CCPA.",
                ),
                io.String.Input(
                    "slots",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Other slots than the usual ones, a line each, by name or by category: scarf = 8, or gown = 2, 3"
                    " to give a reference twice. Empty: all as usual.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), io.String.Output(display_name="note")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, slots: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_parse_slots, slots)

    @classmethod
    def execute(
        cls, model: ModelPatcher, layout: Layout, scheme: str, item_anchor: str, slots: str = ""
    ) -> io.NodeOutput:
        require_flux(cls.DISPLAY_NAME, model)
        chosen = _chosen_slots(slots, layout)
        if not layout.references:
            note = "The layout has no references, so there is nothing to place."
            return with_note(cls, note, model, note)
        try:
            given = assign_slots(layout.references, chosen)
        except SlotError as error:
            raise InputError(cls.DISPLAY_NAME, "slots" if slots.strip() else "layout", str(error)) from None
        lines = _describe(layout.references, given, chosen)
        silent = [entry.name for entry in layout.references if entry.role == "subject" and not entry.spans]
        if scheme == CCPA and silent:
            lines.append(
                f"The prompt does not say which of its words describe {_listed(silent)}, so none are placed there (use Item"
                " Prompt)."
            )
        patched, note = apply_condition_positions(model, layout, given, scheme, item_anchor), "\n".join(lines)
        return with_note(cls, note, patched, note)


def _parse_slots(text: str) -> dict[str, Slots]:
    """{name or category: slots} of lines such as ``gown = 2, 3``."""
    node, chosen = EnsembleConditionPositions.DISPLAY_NAME, {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(
                node, "slots", f"'{line}' cannot be read; write a name or category and its slot: scarf = 8"
            )
        numbers = tuple(int(number) for number in match["slots"].split(","))
        if not all(1 <= number <= MAX_SLOT for number in numbers) or len(set(numbers)) < len(numbers):
            raise InputError(node, "slots", f"'{line}' will not do; slots are different numbers from 1 to {MAX_SLOT}")
        if match["who"] in chosen:
            raise InputError(node, "slots", f"'{match['who']}' is there twice; write one line with all its slots")
        chosen[match["who"]] = numbers
    return chosen


def _chosen_slots(text: str, layout: Layout) -> dict[str, Slots]:
    chosen = _parse_slots(text)
    known = {*CATEGORY_SLOTS, *(word for entry in layout.references for word in (entry.name, entry.category))}
    for who in chosen:
        if who not in known:
            names = ", ".join(entry.name for entry in layout.references if entry.name) or "nobody"
            raise InputError(
                EnsembleConditionPositions.DISPLAY_NAME,
                "slots",
                f"'{who}' is neither a category nor in the cast, which has {names}; check the spelling",
            )
    return chosen


def _describe(references: Sequence[Reference], given: Sequence[Slots], chosen: dict[str, Slots]) -> list[str]:
    """Who stands where, a line each, and why where it is not the usual place."""
    holder = {slot: reference.name for reference, slots in zip(references, given, strict=True) for slot in slots}
    lines, displaced = [], []
    for reference, slots in zip(references, given, strict=True):
        if reference.role == "pose":
            lines.append("pose map: on the canvas")
            continue
        line = f"{reference.name} ({reference.category}): slot{'s' * (len(slots) > 1)} {_listed(slots)}"
        if len(slots) > 1:
            line += ", given twice" if len(slots) == 2 else f", given {len(slots)} times"
        lost = [slot for slot in own_slots(reference, chosen) if slot not in slots]
        if lost:
            displaced.append(reference.name)
            line += ", because " + _listed([f"{holder[slot]} has slot {slot}" for slot in lost])
        lines.append(line)
    if displaced:
        lines.append(
            f"Outside the slot of its category a subject may look less like its picture: {_listed(displaced)}. Who comes first"
            " in the cast gets the slot; the slots input overrides that."
        )
    return lines


def _listed(items: Sequence[object]) -> str:
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


NODES: list[type[io.ComfyNode]] = [EnsembleConditionPositions]
