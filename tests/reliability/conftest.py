"""One real server in a sandbox for the small shares of what devtools.reliability does at full size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.reliability.sandbox import SandboxServer, sandbox_server
from devtools.reliability.workload import Prompt, kinds

# Of every family one, and of those the quickest.
QUICK = (
    "astra_pose_and_identity",
    "one_for_all_dress",
    "seal_restyle_by_text",
    "anystory_two_subjects",
    "pose_browser",
    "short_invert",
    "short_pose",
    "short_sheet",
)


@pytest.fixture(scope="package")
def sandbox(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    """Running, and with nothing in its history but what the tests of this folder did."""
    arguments = ["--cache-classic", *([] if torch.accelerator.is_available() else ["--cpu"])]
    root = tmp_path_factory.mktemp("reliability") / "sandbox"
    with sandbox_server(root, tiny_models, *arguments) as running:
        yield running


@pytest.fixture(scope="package")
def quick() -> dict[str, Prompt]:
    """The quick kinds of work, with two sampling steps."""
    known = kinds()
    return {name: known[name] for name in QUICK}


@pytest.fixture(scope="package")
def object_info(sandbox: SandboxServer) -> dict[str, Any]:
    """The node classes of the server."""
    return sandbox.get("/object_info")
