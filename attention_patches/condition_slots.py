"""Condition ids (One-for-All, section 3.2 and appendix G): which slot a reference stands in, by what it shows.

A model trained with condition ids knows a thing by its slot: face 1, upper garment 2, lower garment 3, bag 4, and in the
paper's extensions any other thing 5, hat 6, shoes 7. What the paper leaves open is read like this:

- A dress is both garments: its reference is given twice, in slots 2 and 3. Where a garment that comes earlier in the cast
  has one of the two, the dress is given once, in the other.
- A person is a face with more around it: slot 1 is where "who" comes from. An animal is one of the "other" things that
  the paper trained slot 5 with.
- A slot holds one reference. Each subject is first given the slot of its category, in cast order; who came too late gets the
  free garment slot if it is a garment (the paper's second top), else slot 5 if it is free, else the next number after all
  of these, which no training has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from .layout import Reference

Slots = tuple[int, ...]

CATEGORY_SLOTS: Mapping[str, Slots] = {
    "face": (1,),
    "person": (1,),
    "upper garment": (2,),
    "lower garment": (3,),
    "dress": (2, 3),
    "bag": (4,),
    "other": (5,),
    "animal": (5,),
    "hat": (6,),
    "shoes": (7,),
}
GARMENT_SLOTS = (2, 3)
OTHER_SLOT = 5
_GARMENTS = ("upper garment", "lower garment")


class SlotError(ValueError):
    """References that cannot be given slots; one sentence."""


def own_slots(reference: Reference, chosen: Mapping[str, Slots]) -> Slots:
    """The slots that a subject wishes for: those chosen for its name, else for its category, else its category's."""
    wish = chosen.get(reference.name) or chosen.get(reference.category) or CATEGORY_SLOTS.get(reference.category)
    if wish is None:
        raise SlotError(
            f"'{reference.name}' is of category '{reference.category}', which has no slot; choose one for it or use one of:"
            f" {', '.join(CATEGORY_SLOTS)}"
        )
    return wish


def assign_slots(references: Sequence[Reference], chosen: Mapping[str, Slots] | None = None) -> tuple[Slots, ...]:
    """Condition ids of every reference: no slot twice, at least one for a subject, none for a pose map.

    Args:
        references: a layout's, in order.
        chosen: slots by a subject's name, which are kept in any case, or by category, which replace `CATEGORY_SLOTS`.

    Raises:
        SlotError: an unknown category, or a slot that was chosen for two names.
    """
    chosen = chosen or {}
    subjects = {index: reference for index, reference in enumerate(references) if reference.role == "subject"}
    wishes = {index: own_slots(reference, chosen) for index, reference in subjects.items()}
    given: dict[int, Slots] = {}
    holder: dict[int, str] = {}

    def give(index: int, slots: Slots) -> None:
        given[index] = slots
        holder.update(dict.fromkeys(slots, references[index].name))

    for index, reference in subjects.items():
        if reference.name in chosen:
            taken = [slot for slot in wishes[index] if slot in holder]
            if taken:
                raise SlotError(
                    f"slot {taken[0]} was chosen for '{holder[taken[0]]}' and for '{reference.name}'; give them different ones"
                )
            give(index, wishes[index])
    for index in [index for index in subjects if index not in given]:
        free = tuple(slot for slot in wishes[index] if slot not in holder)
        if free:
            give(index, free)
    for index in [index for index in subjects if index not in given]:
        give(index, (_spare_slot(subjects[index].category, holder),))
    return tuple(given.get(index, ()) for index in range(len(references)))


def _spare_slot(category: str, taken: Mapping[int, str]) -> int:
    spare = (*(GARMENT_SLOTS if category in _GARMENTS else ()), OTHER_SLOT)
    beyond = count(max(slot for slots in CATEGORY_SLOTS.values() for slot in slots) + 1)
    return next(slot for slots in (spare, beyond) for slot in slots if slot not in taken)
