"""What is said when the machine has too little memory or disk for a training, or does not let it write its folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import torch

from .errors import TrainingError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def shortage_in_one_sentence(out: Path) -> Iterator[None]:
    """Says in a sentence what the machine lacks or refuses.

    Args:
        out: the run's folder.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    except OSError as error:
        if error.errno in _DISK_FULL:
            remedy = "make room there and start again"
        elif _is_about(out, error):
            remedy = (
                "give another folder (--out) or another name (run), or make this one a folder that can be written to"
            )
        else:
            raise
        raise TrainingError(f"{out} cannot be written to ({error.strerror}); {remedy}") from None
    else:
        return
    comfy.model_management.soft_empty_cache()
    raise TrainingError(
        "there is not enough memory for a step; lower batch_size (raise accumulation for it), lower the resolution of the data,"
        " or turn gradient_checkpointing on (then lower lora_rank)"
    )


def _is_about(out: Path, error: OSError) -> bool:
    """Whether an error is about a folder, one that holds it, or something in it."""
    if error.filename is None:
        return False
    path = Path(error.filename)
    return path == out or path in out.parents or out in path.parents


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the processor's memory ran out; PyTorch says the latter in words alone."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or comfy.model_management.is_oom(error)
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )
