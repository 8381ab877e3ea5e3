"""The bundled workflows, described once; devtools/build_workflows.py writes the two forms of each."""

from __future__ import annotations

from pathlib import Path

from devtools.workflow_sources import anystory, astra, evaluation, one_for_all, poses, seal, training

WORKFLOWS = Path(__file__).resolve().parent.parent.parent / "workflows"

WORKFLOW_SOURCES = (
    *astra.WORKFLOWS,
    *one_for_all.WORKFLOWS,
    *seal.WORKFLOWS,
    *anystory.WORKFLOWS,
    *poses.WORKFLOWS,
    *training.WORKFLOWS,
    *evaluation.WORKFLOWS,
)
