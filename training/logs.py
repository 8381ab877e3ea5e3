"""What a training writes down as it goes, in its run's folder.

log.jsonl      one line a step: {"step": 1, "loss": ..., "learning_rate": ..., "gradient_norm": ..., other losses}
loss.png       the loss plot
pictures/      sample pictures, step-00001000.png
tensorboard/   event files, where the package tensorboard is installed
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..models_info.files import whole_file
from .loss_plot import loss_plot

Entry = dict[str, float]


class RunLog:
    """The files of one run.

    Args:
        folder: the run's.
        step: steps already done; what a killed run wrote about later ones is dropped.

    Attributes:
        entries: all its steps, those before it was continued too.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.entries = read_entries(folder / "log.jsonl")[:step]
        with whole_file(folder / "log.jsonl") as temporary:
            temporary.write_text("".join(map(_line, self.entries)), encoding="utf-8")
        self.file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self.board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, entry: Entry) -> None:
        """Note a step."""
        self.entries.append(entry)
        self.file.write(_line(entry))
        if self.board is not None:
            for name, value in entry.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(entry["step"]))

    def picture(self, picture: torch.Tensor, step: int) -> None:
        """Keep a sample picture (H, W, 3) in [0, 1]."""
        pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        with whole_file(self.folder / "pictures" / f"step-{step:08d}.png") as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        if self.board is not None:
            self.board.add_image("picture", pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring everything to the disk."""
        self.file.flush()
        if self.board is not None:
            self.board.flush()

    def plot(self) -> None:
        """Draw the losses so far."""
        with whole_file(self.folder / "loss.png") as temporary:
            loss_plot(self.entries).save(temporary, format="PNG")

    def close(self) -> None:
        """No more will be written."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def _line(entry: Entry) -> str:
    return json.dumps(entry) + "\n"


def read_entries(path: Path) -> list[Entry]:
    """The entries of a log, up to the first line that is not whole."""
    entries: list[Entry] = []
    if not path.is_file():
        return entries
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or entry.get("step") != len(entries) + 1:
            break
        entries.append(entry)
    return entries
