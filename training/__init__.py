"""Headless: weights are made here. Nodes and command line call the same functions."""

import sys

import torch
from comfy.cli_args import args

# Outside ComfyUI's own main.py nobody has told the host that there is no accelerator, and it must know before
# comfy.model_management is first imported.
if "comfy.model_management" not in sys.modules and not torch.accelerator.is_available():
    args.cpu = True
