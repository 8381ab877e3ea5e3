"""The training loop: from a task, its data and a configuration to weights, with checkpoints on the way.

One optimizer step learns from batch_size x accumulation samples. Sample number i of a step s has the position
s x batch_size x accumulation + i, which is all that its randomness depends on; a batch is the samples at neighbouring
positions, and of several processes each takes every n-th of them. The loss of a step is the mean over all its samples, however they
are cut into batches and shared out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import (
    InterruptProcessingException,
    processing_interrupted,
    throw_exception_if_processing_interrupted,
)

from .checkpoint import Checkpoint, newest_checkpoint, remove_leftovers, write_checkpoint
from .checkpointing import host_in_training
from .config import SavedAs, TrainingConfig
from .data import Draw, TrainingData
from .distributed import OneProcess, Trainee, plain
from .errors import TrainingError
from .logs import Entry, RunLog
from .precision import autocast
from .prefetch import Prefetch
from .progress import Clock, Progress
from .randomness import generator
from .run_folder import alone_in, check_same, set_aside
from .schedule import learning_rate
from .shortage import shortage_in_one_sentence
from .state import TrainingState
from .task import Prepared, Task, Weights

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        weights: its files, with the averaged values where there is an average.
        history: the log's entries, one a step.
        step: steps done.
        finished: False where it was stopped before its last step; a checkpoint was written then.
    """

    weights: Weights
    history: list[Entry]
    step: int
    finished: bool


def train(
    task: Task,
    data: TrainingData,
    config: TrainingConfig,
    out: Path,
    report: Report | None = None,
    resume: bool = True,
    stopped: Callable[[], bool] = lambda: False,
    processes: OneProcess | None = None,
) -> TrainingResult:
    """Train, from the newest checkpoint in `out` where there is one.

    Args:
        out: the run's folder.
        report: called after every step, in the first process.
        resume: False moves what is in `out` into a folder "earlier" there and begins anew.
        stopped: asked after every step; True ends the training with a checkpoint. So does ComfyUI's interrupt, which is then
            raised.
        processes: from `join_processes`, for a training in several.

    Raises:
        TrainingError: it cannot begin or go on; the checkpoints written so far are untouched.
    """
    processes = processes or OneProcess()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        host_in_training(),
        shortage_in_one_sentence(out),
        alone_in(out) if processes.rank == 0 else nullcontext(),
    ):
        return _Run(task, data, config, out, report or (lambda _: None), processes).train(resume, stopped)


class _Run:
    def __init__(
        self, task: Task, data: TrainingData, config: TrainingConfig, out: Path, report: Report, processes: OneProcess
    ) -> None:
        if config.batch_size < processes.count:
            raise TrainingError(
                f"batch_size is {config.batch_size}, and {processes.count} processes share a batch; give each at least one"
            )
        self.task, self.data, self.config, self.out, self.report = task, data, config, out, report
        self.processes = processes
        self.first = processes.rank == 0  # the only process that writes and reports
        self.samples = config.batch_size * config.accumulation
        self.folder = out / "checkpoints"
        trainee = Trainee(task)
        self.module = processes.wrap(trainee)
        self.state = TrainingState(trainee, config)
        self.settled = True  # no update of the weights is half done or was refused

    def train(self, resume: bool, stopped: Callable[[], bool]) -> TrainingResult:
        found = self._find_checkpoint(resume)
        continued = self.state.restore(self.processes, found)
        del found  # its tensors are copied
        self.saved = self.state.step if continued else -1
        self.log = RunLog(self.out, self.state.step) if self.first else None
        if continued:
            self._tell(f"the run '{self.config.run}' continues after step {self.state.step}")
        try:
            finished = self._steps(stopped)
        finally:
            if self.log is not None:
                self.log.close()
        entries = self.log.entries if self.log is not None else []
        return TrainingResult(self._weights(), entries, self.state.step, finished)

    def _find_checkpoint(self, resume: bool) -> Checkpoint | None:
        """What the first process finds; where that will not do, all processes say so."""
        found, refusal = None, None
        try:
            if self.first:
                found = self._read_checkpoint(resume)
        except TrainingError as error:
            refusal = {"sentence": str(error), "input_name": error.input_name}
        refusal = self.processes.tell(refusal)
        if refusal is not None:
            raise TrainingError(**refusal)
        return found

    def _read_checkpoint(self, resume: bool) -> Checkpoint | None:
        if not resume:
            set_aside(self.out)
        remove_leftovers(self.folder)
        found = newest_checkpoint(self.folder, self._tell)
        if found is not None:
            check_same(self._about(), found.state, self.config.run)
        return found

    def _about(self) -> dict[str, Any]:
        """What a continuation must find unchanged."""
        task = {"trainer": self.task.name, **self.task.identity()}
        return {"config": self.config.unchangeable(), "task": task, "data": self.data.identity}

    def _tell(self, note: str) -> None:
        self.report(Progress(self.state.step, self.config.steps, note=note))

    def _steps(self, stopped: Callable[[], bool]) -> bool:
        """All steps that are left; False where it was stopped before the last one."""
        stop = False
        with Prefetch(self._prepare, self._plan(), self.config.workers, self.data.name) as batches:
            self.batches, self.clock = batches, Clock()
            try:
                while self.state.step < self.config.steps and not stop:
                    stop = self._step(lambda: stopped() or processing_interrupted())
            except (Exception, InterruptProcessingException):
                if self.settled and self.processes.count == 1:
                    self._save()
                raise
        self._save()
        throw_exception_if_processing_interrupted()
        return self.state.step >= self.config.steps

    def _plan(self) -> Iterator[Sequence[Draw]]:
        """This process's draws of every forward call."""
        for step in range(self.state.step, self.config.steps):
            draws = self.data.batch(step, self.samples)
            for start in range(0, self.samples, self.config.batch_size):
                yield self.processes.share(draws[start : start + self.config.batch_size])

    def _prepare(self, draw: Draw) -> tuple[int, Prepared]:
        return draw.position, self.task.prepare(self.data.load(draw), draw.position)

    def _step(self, stopped: Callable[[], bool]) -> bool:
        """One optimizer step and what follows from it; whether to stop."""
        rate = learning_rate(self.config, self.state.step)
        found = self._gradients(stopped)
        if found is None:
            return True
        losses, norm, stop = found
        self._update(losses["loss"], norm, rate)
        self.clock.tick(self.batches.waited)
        step = self.state.step
        if self.log is not None:
            self.log.write({"step": step, **losses, "learning_rate": rate, "gradient_norm": norm})
        picture = self._picture() if _is_due(step, self.config.picture_every) else None
        if _is_due(step, self.config.save_every):
            self._save()
        if self.first:
            self.report(self._progress(losses, rate, norm, picture))
        return stop

    def _gradients(self, stopped: Callable[[], bool]) -> tuple[dict[str, float], float, bool] | None:
        """Losses (means over the step's samples), the gradient's norm, and whether any process wants to stop.

        Leaves the gradient, times the loss scale, in the parameters. A process alone stops at once: then None.
        """
        for parameter in self.state.parameters.values():
            parameter.grad = None
        totals: dict[str, torch.Tensor] = {}
        for number in range(self.config.accumulation):
            if self.processes.count == 1 and stopped():
                return None
            for name, total in self._forward_backward(last=number == self.config.accumulation - 1).items():
                totals[name] = totals[name] + total if name in totals else total
        gradients = [value.grad for value in self.state.parameters.values() if value.grad is not None]
        norm = plain(torch.nn.utils.get_total_norm(gradients)).reshape(1)
        names = sorted(totals)
        sums = torch.stack([*(totals[name] for name in names), torch.full_like(totals["loss"], float(stopped()))])
        # One look at the device a step.
        *values, stops, norm = torch.cat([self.processes.sum(sums), norm.to(sums)]).tolist()
        losses = {name: value / self.samples for name, value in zip(names, values, strict=True)}
        return losses, norm / self.state.scale.value, stops > 0

    def _forward_backward(self, last: bool) -> dict[str, torch.Tensor]:
        """One forward and backward pass over this process's part of a batch; sums of its losses."""
        positions, batch = zip(*next(self.batches), strict=True)
        self._seed(positions[0])
        with self.processes.backward(last):
            with autocast(self.config.precision, self.state.device):
                losses = self.module(batch, positions)
            loss = losses["loss"].float().sum()
            # Gradients are averaged over the processes.
            (loss * (self.state.scale.value * self.processes.count / self.samples)).backward()
        return {name: value.detach().float().sum() for name, value in losses.items()}

    def _seed(self, position: int) -> None:
        """Let a module that draws of itself, as dropout does, draw the same after a resumption."""
        seed = generator(self.config.seed, "step", position).initial_seed()
        torch.default_generator.manual_seed(seed)
        if self.state.device.type != "cpu":
            torch.get_device_module(self.state.device).manual_seed(seed)

    def _update(self, loss: float, norm: float, rate: float) -> None:
        """Take the step that the gradient says, unless float16 overflowed."""
        state, finite = self.state, math.isfinite(loss) and math.isfinite(norm)
        self.settled = False
        try:
            scale = state.scale.value
            state.scale.update(finite)
        except TrainingError as error:
            raise TrainingError(f"{error} in step {state.step + 1}; {self._remedy(rate)}") from None
        if finite:
            factor = min(1.0, self.config.clip_norm / (norm + 1e-6)) if self.config.clip_norm else 1.0
            if factor != scale:
                gradients = [value.grad for value in state.parameters.values() if value.grad is not None]
                torch._foreach_mul_(gradients, factor / scale)  # pyright: ignore[reportPrivateImportUsage]
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            if state.average is not None:
                state.average.update()
        state.step += 1
        self.settled = True

    def _remedy(self, rate: float) -> str:
        kept = f"the checkpoint of step {self.saved} is untouched" if self.saved > 0 else "there was no checkpoint yet"
        return f"begin another run with a smaller learning_rate (it was {rate:.3g}) or clip_norm; {kept}"

    def _progress(self, losses: dict[str, float], rate: float, norm: float, picture: torch.Tensor | None) -> Progress:
        seconds = self.clock.step_seconds()
        return Progress(
            step=self.state.step,
            steps=self.config.steps,
            losses=losses,
            learning_rate=rate,
            gradient_norm=norm,
            step_seconds=seconds,
            remaining=seconds * (self.config.steps - self.state.step),
            waited=self.clock.waited_share(),
            picture=picture,
        )

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """While it lasts, the modules are as they are to be saved and shown."""
        average = self.state.average.in_place() if self.state.average else nullcontext()
        with torch.no_grad(), average, self.processes.assembled():
            yield

    def _picture(self) -> torch.Tensor | None:
        with self._shown(), host_in_training(False):
            picture = self.task.picture() if self.log is not None else None
        if picture is not None and self.log is not None:
            self.log.picture(picture, self.state.step)
        return picture

    def _weights(self) -> Weights:
        with self._shown():
            if not self.first:
                return Weights(())
            files = self.task.weights().files
            return Weights(tuple(replace(file, tensors=_copies(file.tensors, self.config.saved_as)) for file in files))

    def _save(self) -> None:
        """Write a checkpoint, unless this step's is there."""
        if self.state.step == self.saved:
            return
        checkpoint = self.state.capture(self.processes, self._about())
        if self.log is not None:
            self.log.flush()  # before the checkpoint, which stands for so many lines
            write_checkpoint(self.folder, checkpoint, self.config.keep)
            self.log.plot()
        self.saved = self.state.step


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _copies(tensors: Mapping[str, torch.Tensor], saved_as: SavedAs) -> dict[str, torch.Tensor]:
    """On the CPU, and of their own: the training's go on changing. Scales and single numbers keep their precision."""
    made = {}
    for name, value in tensors.items():
        half = saved_as == "bf16" and value.ndim >= 2 and value.is_floating_point()
        made[name] = value.detach().to("cpu", torch.bfloat16 if half else value.dtype, copy=True).contiguous()
    return made
