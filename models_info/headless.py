"""Outside ComfyUI's own main.py: what that would have told the host at its start."""

from __future__ import annotations

import sys

import torch
from comfy.cli_args import args


def tell_host_of_devices() -> None:
    """Tell the host if there is no accelerator; it must know before comfy.model_management is first imported."""
    if "comfy.model_management" not in sys.modules and not torch.accelerator.is_available():
        args.cpu = True
