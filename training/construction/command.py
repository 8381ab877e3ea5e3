"""The construction's command line.

    python -m comfyui_ensemble.training.construction FOLDER --out FOLDER --captioner FOLDER|files --sam FILE --clip-vision FILE

The same command continues what was stopped or killed. Models are given by their path, or by their name in ComfyUI's models
folders.
"""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...batch.journal import JournalError
from ...batch.queue_client import QueueClient, QueueError
from ...models_info.registry import (
    CLIP_VIT_H,
    OPENPOSE,
    OPENPOSE_BODY,
    SAM_VIT_B,
    SAMS,
    ModelFile,
    find_file,
    register_folders,
)
from ...models_info.sam import SAMError, load_sam
from ..config import read_config_file
from ..errors import TrainingError
from ..models import load_vision
from .build import build, summary_lines
from .captioners import FILES, find_captioner
from .edit import check_edit_workflow, check_pictures
from .models import Models, PoseFinder, Remote, Vision
from .settings import read_build_config
from .steps import Report

JUDGED = ("First", "Second")  # titles of a judge's Load Image nodes
QUIET_SECONDS = 10.0  # between plain lines
LIVE_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the data is built, 2 when it cannot go on, 130 when it was stopped."""
    chosen = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with torch.inference_mode():
            return _run(chosen)
    except torch.OutOfMemoryError:
        _say("The memory of the device is full; close other programs, or choose a smaller SAM or captioner.")
    except OSError as error:
        _say(f"{_file_sentence(error)}.")
    except (TrainingError, QueueError, JournalError, ModuleNotFoundError) as error:
        _say(f"{str(error).rstrip('.')}.")
    except KeyboardInterrupt:
        _say("Stopped; the same command continues.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 2


def _file_sentence(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full; free some space, then the same command continues"
    return f"{error.filename} cannot be read or written ({error.strerror})" if error.filename else str(error)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python dev.py python -m comfyui_ensemble.training.construction",
        description="Training data from a folder of pictures. The same command continues what was stopped.",
    )
    parser.add_argument("folder", type=Path, help="of pictures; those in its folders are taken too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the manifests and all their files")
    parser.add_argument(
        "--captioner",
        required=True,
        help=f"folder of a Florence-2 model, or '{FILES}': <picture>.json beside each picture",
    )
    parser.add_argument("--sam", required=True, help="SAM's weights, such as sam_vit_b_01ec64.pth")
    parser.add_argument("--clip-vision", required=True, help="a CLIP vision encoder")
    parser.add_argument("--face-vision", help="another encoder that judges faces of pairs")
    parser.add_argument("--openpose", default=OPENPOSE_BODY.name, help="OpenPose's body network")
    parser.add_argument("--config", type=Path, help="JSON file of settings")
    parser.add_argument("--workflow", type=Path, help="API form; edits every reference on a ComfyUI server")
    parser.add_argument("--image-node", default="Reference", help="title of its Load Image node for the reference")
    parser.add_argument(
        "--prompt-node", default="", help="title of its node for the instruction, if it has no %%prompt%%"
    )
    parser.add_argument(
        "--judge", type=Path, help=f"API form; a vision-language model looks at every pair ({' and '.join(JUDGED)})"
    )
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="that ComfyUI's address")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one edit")
    return parser


def _run(chosen: argparse.Namespace) -> int:
    register_folders()
    config = read_config_file(chosen.config, read_build_config)
    models = Models(
        captioner=find_captioner(chosen.captioner),
        sam=_sam(_file(chosen.sam, SAMS, SAM_VIT_B)),
        vision=Vision(load_vision(_file(chosen.clip_vision, CLIP_VIT_H.folder, CLIP_VIT_H))),
        poses=PoseFinder(_file(chosen.openpose, OPENPOSE, OPENPOSE_BODY)) if config.poses else None,
        faces=Vision(load_vision(_file(chosen.face_vision, CLIP_VIT_H.folder, CLIP_VIT_H)))
        if chosen.face_vision
        else None,
        editor=_editor(chosen) if chosen.workflow else None,
        judge=_judge(chosen) if chosen.judge else None,
    )
    built = build(chosen.folder, chosen.out, models, config, Report(progress=Terminal()))
    _say(summary_lines(built.summary))
    for path in (built.manifest, built.pairs):
        if path is not None:
            _say(str(path))
    return 0


def _file(name: str, folder: str, entry: ModelFile) -> Path:
    path = Path(name) if Path(name).is_file() else find_file(folder, name)
    if path is None:
        raise TrainingError(_missing(name, entry))
    return path


def _missing(name: str, entry: ModelFile) -> str:
    if name == entry.name:
        return entry.missing()
    return (
        f"there is no '{name}', neither by its path nor in {folder_paths.models_dir}/{entry.folder}; get {entry.name} from"
        f" {entry.source}"
    )


def _sam(path: Path) -> Any:
    try:
        return load_sam(path)
    except ModuleNotFoundError:
        raise TrainingError(
            "the Python package segment-anything is not installed; run `pip install segment-anything`"
        ) from None
    except SAMError as error:
        raise TrainingError(f"{path.name} will not do: {error}") from None


def _editor(chosen: argparse.Namespace) -> Remote:
    workflow = _workflow(chosen.workflow)
    check_edit_workflow(workflow, chosen.image_node, chosen.prompt_node)
    return Remote(QueueClient(chosen.server, chosen.timeout), workflow, (chosen.image_node, chosen.prompt_node))


def _judge(chosen: argparse.Namespace) -> Remote:
    workflow = _workflow(chosen.judge)
    check_pictures(workflow, *JUDGED)
    return Remote(QueueClient(chosen.server, chosen.timeout), workflow, JUDGED)


def _workflow(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TrainingError(
            f"the workflow {path} cannot be read ({error.strerror}); save one with Workflow > Export (API)"
        ) from None
    except ValueError:
        raise TrainingError(f"{path.name} is not JSON; save the workflow with Workflow > Export (API)") from None


class Terminal:
    """How far a step is: one live line, or plain lines from time to time where there is no terminal."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.last = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.last < (LIVE_SECONDS if self.live else QUIET_SECONDS):
            return
        self.last = now
        text = f"{step}: {done} of {total}"
        if self.live:
            end = "\n" if done == total else ""
            sys.stderr.write("\r\x1b[2K" + text[: shutil.get_terminal_size().columns - 1] + end)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _say(text: str) -> None:
    print(text, flush=True)
