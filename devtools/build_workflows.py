"""Writes the bundled workflows in both forms: workflows/NAME.json for the page, workflows/api/NAME.json for POST /prompt.

python dev.py python -m devtools.build_workflows
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devtools.server import ComfyServer
from devtools.workflow_forms import Workflow, api_form, graph_form
from devtools.workflow_sources import WORKFLOW_SOURCES, WORKFLOWS


def write(workflow: Workflow, object_info: Mapping[str, Any], folder: Path = WORKFLOWS) -> None:
    """Write both forms."""
    for path, content in (
        (folder / f"{workflow.name}.json", graph_form(workflow, object_info)),
        (folder / "api" / f"{workflow.name}.json", api_form(workflow, object_info)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ComfyServer(Path(folder) / "data", Path(folder) / "models", arguments=["--cpu"]) as server:
            object_info = server.get("/object_info")
        for workflow in WORKFLOW_SOURCES:
            write(workflow, object_info)


if __name__ == "__main__":
    main()
