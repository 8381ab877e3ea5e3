"""How a batch says that it cannot begin or go on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BatchError(ValueError):
    """One sentence without its full stop, for the person at the terminal."""


def closest(name: str, names: Iterable[str]) -> str:
    """ ", did you mean 'that'?" where one of the names is near, else nothing."""
    by_folded = {known.casefold(): known for known in names}
    found = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return f"; did you mean '{by_folded[found[0]]}'?" if found else ""
