"""One training in several processes, as `accelerate launch` or `torchrun` starts them: copies of the weights in each (DDP), or
a share of weights, gradients, averages and optimizer in each (FSDP).

The configuration says what one step learns from, however many processes there are: of a batch's positions each process takes
every n-th. Only the first process writes. A checkpoint holds whole tensors, so any number of processes continues it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from .errors import TrainingError
from .task import Prepared, Task

Item = TypeVar("Item")


class Trainee(nn.Module):
    """A task as one module whose forward pass is its losses, which is what DDP and FSDP need to see."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.names = list(task.modules())
        self.parts = nn.ModuleList(task.modules().values())
        self.task = task

    def forward(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        return self.task.losses(batch, positions)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by the names that a checkpoint gives them."""
        named = dict(self._named("named_parameters"))
        return {name: value for name, value in named.items() if value.requires_grad}

    def carried(self) -> dict[str, torch.Tensor]:
        """What the modules keep besides, such as running means."""
        return {name: value for name, value in self._named("named_buffers") if value is not None}

    def _named(self, kind: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for name, part in zip(self.names, self.parts, strict=True):
            for inner, value in getattr(part, kind)():
                if id(value) not in seen:  # two modules may share one
                    seen.add(id(value))
                    yield f"{name}.{inner}", value


class OneProcess:
    """A training in this process alone."""

    rank = 0
    count = 1

    def wrap(self, trainee: Trainee) -> nn.Module:
        """The module to call in the trainee's place."""
        return trainee

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a batch."""
        return items[self.rank :: self.count]

    def backward(self, last: bool) -> AbstractContextManager[Any]:
        """Where a forward and backward pass belongs; gradients need not be exchanged before the `last` of a step."""
        return nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over all processes."""
        return values

    def whole(self, value: torch.Tensor) -> torch.Tensor:
        """A parameter or what belongs to one, on the CPU and in one piece."""
        return plain(value).detach().cpu().contiguous()

    def put(self, value: torch.Tensor, target: torch.Tensor) -> None:
        """Set `target`, a parameter or what belongs to one, to a whole tensor that the first process has."""
        with torch.no_grad():
            target.copy_(value)

    def tell(self, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What the first process has, in every process."""
        return value

    @contextmanager
    def assembled(self) -> Iterator[None]:
        """While it lasts, modules outside the wrapped forward pass have their whole parameters."""
        yield

    def close(self) -> None:
        """Leave the other processes."""


class SeveralProcesses(OneProcess):
    """A training shared by processes on one machine or several."""

    def __init__(self, accelerator: Any, shards: bool) -> None:
        self.shards = shards
        self.device = accelerator.device
        self.rank = accelerator.process_index
        self.count = accelerator.num_processes

    def wrap(self, trainee: Trainee) -> nn.Module:
        with torch.no_grad():
            for value in [*trainee.trained().values(), *trainee.carried().values()]:
                dist.broadcast(value, 0)
        if self.shards:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.count,))
            self.module: Any = fully_shard(trainee, mesh=mesh)
            self._let_state_be_read()
        else:
            # A batch without a certain group of samples leaves that group's parameters without a gradient.
            self.module = nn.parallel.DistributedDataParallel(
                trainee, find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return self.module

    def _let_state_be_read(self) -> None:
        """Keep parameters whole through a forward pass in which the host reads a module's state_dict to learn its size.

        FSDP would share them out again at that moment, by hooks that it sets when it first assembles them.
        """
        before = {part: set(part._state_dict_pre_hooks) for part in self.module.modules()}
        self.module.unshard()
        self.module.reshard()
        for part, hooks in before.items():
            for hook in set(part._state_dict_pre_hooks) - hooks:
                del part._state_dict_pre_hooks[hook]

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        if self.shards:
            self.module.set_requires_gradient_sync(last)
            yield
        else:
            with nullcontext() if last else self.module.no_sync():
                yield

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values)
        return values

    def put(self, value: torch.Tensor, target: torch.Tensor) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        full = value.to(device=self.device, dtype=target.dtype) if self.rank == 0 else None
        if full is None:
            full = torch.empty(target.shape, dtype=target.dtype, device=self.device)
        if isinstance(target, DTensor):
            super().put(distribute_tensor(full, target.device_mesh, target.placements), target)
            return
        dist.broadcast(full, 0)
        super().put(full, target)

    def tell(self, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    @contextmanager
    def assembled(self) -> Iterator[None]:
        if not self.shards:
            yield
            return
        self.module.reshard()
        shares = [
            (part, name, value)
            for part in self.module.modules()
            for name, value in part.named_parameters(recurse=False)
            if hasattr(value, "full_tensor")
        ]
        for part, name, value in shares:
            setattr(part, name, nn.Parameter(value.full_tensor(), requires_grad=False))
        try:
            yield
        finally:
            for part, name, value in shares:
                setattr(part, name, value)

    def close(self) -> None:
        dist.destroy_process_group()


def plain(value: torch.Tensor) -> torch.Tensor:
    """A tensor in one piece; all processes must ask for it together."""
    gather = getattr(value, "full_tensor", None)  # of a DTensor, which only FSDP makes
    return value if gather is None else gather()


def end_process(status: int) -> NoReturn:
    """End this process. One of several ends without the interpreter's own clearing up: what the exchange of tensors leaves
    behind can bring it down there (seen as "terminate called without an active exception"), after everything is written, and
    the launcher would stop the others for it.
    """
    if dist.is_available() and dist.is_torchelastic_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def join_processes(shards: bool = False) -> OneProcess:
    """The processes that this one was launched among; to be called before the host looks for its device.

    Args:
        shards: FSDP rather than DDP, also where the launcher does not say so.

    Raises:
        TrainingError: there are several and accelerate is not installed.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return OneProcess()
    try:
        from accelerate import Accelerator
        from accelerate.utils import parse_flag_from_env
    except ImportError:
        raise TrainingError(
            "the Python package accelerate is not installed, and a training in several processes needs it; run"
            " `pip install accelerate`"
        ) from None
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if not dist.is_initialized():  # it was launched as one of one
        return OneProcess()
    # Accelerate itself shares nothing out where there is no accelerator; what its launcher was told counts here.
    return SeveralProcesses(accelerator, shards or parse_flag_from_env("ACCELERATE_USE_FSDP"))
