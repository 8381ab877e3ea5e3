"""What sampling runs wrote down for the artist: attention shares, gate masks, routing maps.

A patch fills a recording while the sampler runs, a node shows it afterwards. A graph that works through a list runs the
sampler several times before the first picture is shown, so each run's records are kept with a trace of the latent that
came out of it, and found again by the latent that is connected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

RUNS_KEPT = 16
RUN_BYTES = 64 * 2**20
_TRACE = 256  # numbers of a latent that tell it from others


class Sized(Protocol):
    """A record that says how much memory it takes."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...


Record = TypeVar("Record")
SizedRecord = TypeVar("SizedRecord", bound=Sized)


@dataclass
class Run(Generic[Record]):
    """The records of one sampling run, in the order in which they were made.

    Attributes:
        records: whatever the patch appends.
        trace: numbers from the resulting latent; None until the run has ended.
    """

    records: list[Record] = field(default_factory=list)
    trace: torch.Tensor | None = None


class Recording(Generic[Record]):
    """The last runs of a patched model; owned by the node output that a graph hands on."""

    def __init__(self) -> None:
        self._runs: deque[Run[Record]] = deque(maxlen=RUNS_KEPT)
        self.current: Run[Record] | None = None

    def outer_sample(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: opens a run and keeps it when it ends; what an interrupted run recorded is dropped."""
        self.current = Run()
        try:
            samples = executor(*args, **kwargs)
            self.current.trace = _trace(samples)
            self._runs.append(self.current)
        finally:
            self.current = None
        return samples

    def find(self, samples: torch.Tensor) -> list[Record]:
        """The records of the run that gave `samples`; of the latest where none did; nothing before the first run."""
        trace = _trace(samples)
        for run in reversed(self._runs):
            if (
                run.trace is not None
                and run.trace.shape == trace.shape
                and torch.allclose(run.trace, trace, 1e-2, 1e-3)
            ):
                return run.records
        return self._runs[-1].records if self._runs else []


class BoundedRecording(Recording[SizedRecord]):
    """A recording of maps, of which a run keeps `RUN_BYTES` at most."""

    def keep(self, record: SizedRecord) -> None:
        """Add to the run that is going on, if there is one; its first records go where it grows too large."""
        if self.current is None:  # somebody calls the model without a sampler
            return
        records = self.current.records
        records.append(record)
        excess = sum(kept.size for kept in records) - RUN_BYTES
        while excess > 0 and len(records) > 1:
            excess -= records.pop(0).size


def _trace(samples: torch.Tensor) -> torch.Tensor:
    """Evenly spaced numbers of a latent, float32 on the CPU."""
    flat = samples.flatten()
    return flat[:: max(1, len(flat) // _TRACE)].to("cpu", torch.float32, copy=True)
