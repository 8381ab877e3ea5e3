"""Files that are either whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"[^\\/:*?\"<>|\x00-\x1f]+")  # what a file name cannot hold on one of the systems
LONGEST_NAME = (
    200  # bytes in UTF-8; most systems take 255, and endings and the mark of an unfinished file are to be added
)
_HALF_SIGN = re.compile(r"[\ud800-\udfff]")  # JSON can say it, no encoding of a file system can
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' own


def is_file_name(name: str) -> bool:
    """Whether every system can have a file or folder of this name, in the folder it is put into and in no other."""
    plain = _NAME.fullmatch(name) and not name.startswith(".") and not name.endswith((".", " "))
    sound = bool(plain) and not _RESERVED.fullmatch(name) and not _HALF_SIGN.search(name)
    return sound and len(name.encode()) <= LONGEST_NAME


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to and renames it to `path` at the end; nothing is left on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.chmod(_usual_mode())  # safetensors writes files for their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _usual_mode() -> int:
    """The permissions that a new file has by default."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left of the whole files they were writing in a folder and below; call it only where no
    other process writes there."""
    for partial in folder.rglob(".*.partial"):
        partial.unlink(missing_ok=True)
