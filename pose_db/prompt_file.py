"""Prompts by the million: a file that is read a shard at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .prompt_axes import Variation


class PromptFileError(ValueError):
    """A file of prompts that cannot be used; the message is one sentence without its full stop."""


class PromptFile:
    """A text file with one prompt a line, or ``.jsonl`` with ``{"prompt": ..., "tags": {...}}`` a line; empty lines are left out.

    Every line is looked at once; in memory is where each shard begins.

    Attributes:
        entries: prompts in all.
        digest: identifies the prompts and how they are cut into shards.
    """

    def __init__(self, path: Path, shard: int) -> None:
        """`shard`: prompts of a shard. Raises PromptFileError, OSError: the file holds something else."""
        self.path, self.shard, self.entries = path, shard, 0
        self._starts: list[int] = []
        digest = hashlib.sha256(f"{path.suffix == '.jsonl'} {shard} ".encode())
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._check(line, number)
                    if self.entries % shard == 0:
                        self._starts.append(start)
                    self.entries += 1
                    digest.update(line.strip() + b"\n")
                start += len(line)
        if not self.entries:
            raise PromptFileError(f"{path.name} holds no prompt")
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self._starts)

    def prompts(self, number: int) -> list[Variation]:
        """The prompts of a shard."""
        found: list[Variation] = []
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            for line in file:
                if line.strip():
                    found.append(self._variation(line))
                if len(found) == self.shard:
                    break
        return found

    def _check(self, line: bytes, number: int) -> None:
        try:
            variation = self._variation(line)
        except (ValueError, KeyError, TypeError):
            variation = None
        if variation is None or not variation.prompt:
            form = '{"prompt": "...", "tags": {...}}' if self.path.suffix == ".jsonl" else "text in UTF-8"
            raise PromptFileError(f"line {number} of {self.path.name} is not a prompt; write {form} a line")

    def _variation(self, line: bytes) -> Variation:
        text = line.decode("utf-8-sig").strip()
        if self.path.suffix != ".jsonl":
            return Variation(text, {})
        record: dict[str, Any] = json.loads(text)
        return Variation(str(record["prompt"]).strip(), dict(record.get("tags") or {}))
