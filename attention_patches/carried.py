"""What a conditioning takes along to the model's calls, row by row.

The host puts several conditionings into one call, in any order, or splits them when memory is short. What belongs to a
conditioning therefore travels with it: written to its `model_conds` where a run begins, batched by the host like its
text, and found again among the call's keyword arguments. The host only puts conditionings together that carry the same
keys, so that whoever carries something lets every conditioning of the run carry it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.conds import CONDRegular

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

Entry = dict[str, Any]  # a conditioning of a run: its options, its text under "cross_attn"


class CONDRows(CONDRegular):
    """One Python value for every row of a call; never a reason to keep two conditionings apart."""

    cond: list[Any]

    def process_cond(self, batch_size: int, **kwargs: Any) -> CONDRows:
        return self._copy_with(self.cond * batch_size)

    def can_concat(self, other: CONDRegular) -> bool:
        return True

    def concat(self, others: list[CONDRows]) -> list[Any]:
        return [row for part in (self, *others) for row in part.cond]

    def size(self) -> list[int]:
        return [1]


def entries_of(guider: CFGGuider) -> list[Entry]:
    """Every conditioning of the run that `guider` begins; an OUTER_SAMPLE wrapper may change these, they are the run's own."""
    return [entry for group in guider.conds.values() for entry in group]


def take_along(entry: Entry, key: str, value: CONDRegular) -> None:
    """Let a conditioning carry `value` to the calls, where it arrives as keyword argument `key`."""
    entry["model_conds"] = {**entry["model_conds"], key: value}
