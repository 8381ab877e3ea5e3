"""A report of what was measured: a page with the pictures, worst first, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..evaluation.errors import EvaluationError
from ..evaluation.results import Measurement, means, read_results
from ..models_info.files import is_file_name
from .errors import InputError, require_text, sentence_or_true
from .notes import with_note

MOST_TABLES = 50
NO_PAPER = "none"
Tables = Sequence[Sequence[Measurement]]


class EnsembleEvaluationReport(io.ComfyNode):
    """Writes a report of measurements."""

    DISPLAY_NAME = "Evaluation Report"

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..evaluation.paper_tables import benchmarks

        return io.Schema(
            node_id="EnsembleEvaluationReport",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/evaluation",
            description="Puts measurements into a page with the pictures, worst first, tables, plots and, if you like, the"
            " papers' own numbers beside yours.",
            search_aliases=["metrics", "benchmark", "html", "csv", "plot", "table", "score", "ensemble"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Autogrow.Input(
                    "results",
                    template=io.Autogrow.TemplatePrefix(
                        io.String.Input("table", force_input=True, tooltip="From Pose Similarity or Similarity."),
                        prefix="table",
                        min=1,
                        max=MOST_TABLES,
                    ),
                    tooltip="The tables of what was measured, one an input. Lists are taken whole.",
                ),
                io.String.Input(
                    "name",
                    default="evaluation",
                    optional=True,
                    tooltip="The report's folder in ComfyUI's output folder; a report that is there already is replaced.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures that were measured, in the order of the tables; they are shown in the page.",
                ),
                io.Combo.Input(
                    "compare_with",
                    options=[NO_PAPER, *benchmarks()],
                    default=NO_PAPER,
                    optional=True,
                    tooltip="Shows the papers' numbers on this benchmark beside yours. They are comparable only where you"
                    " measured the same benchmark.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The page, an HTML file that holds all its pictures."),
                io.Image.Output(display_name="image", tooltip="The plots."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: list[str] | str | None = None, results: Any = None) -> bool | str:
        """No value comes for what is linked; of inputs that grow the host gives what it has, asked or not."""
        return sentence_or_true(_folder, _first(name))

    @classmethod
    def execute(
        cls,
        results: io.Autogrow.Type,
        name: list[str] | None = None,
        images: list[torch.Tensor] | None = None,
        compare_with: list[str] | None = None,
    ) -> io.NodeOutput:
        from ..evaluation.report import write_report
        from ..evaluation.report_summary import Context

        rows = _read(results)
        pictures = {}
        if images is not None:
            rows, pictures = _shown(rows, [picture for batch in images for picture in batch])
        title = _first(name) or "evaluation"
        benchmark = _first(compare_with) or NO_PAPER
        context = Context("" if benchmark == NO_PAPER else benchmark)
        try:
            report = write_report(rows, _folder(title), title, pictures=pictures, context=context)
        except EvaluationError as error:
            raise InputError(cls.DISPLAY_NAME, "results", str(error)) from None
        except OSError as error:
            raise InputError(
                cls.DISPLAY_NAME, "name", f"{error.strerror or error}; free some space or choose another name"
            ) from None
        plots = torch.from_numpy(report.picture.astype(np.float32) / 255)[None]
        return with_note(cls, "\n".join(map(str, means(rows))), str(report.page), plots)


def _first(value: Any) -> Any:
    """The one value of an input that is taken as a list."""
    return value[0] if isinstance(value, list) and value else value


def _folder(name: str) -> Path:
    node = EnsembleEvaluationReport.DISPLAY_NAME
    require_text(node, "name", name, "give the report's folder a name")
    if not is_file_name(name):
        raise InputError(node, "name", f"'{name}' cannot be a folder's name; use letters, digits, - and _")
    return Path(folder_paths.get_output_directory()) / name


def _read(results: io.Autogrow.Type) -> list[Measurement]:
    """The measurements of all inputs, in their order."""
    rows: list[Measurement] = []
    for number, name in enumerate(sorted(results, key=lambda name: int(name.removeprefix("table"))), start=1):
        try:
            tables = [read_results(text) for text in results[name]]
        except EvaluationError as error:
            raise InputError(EnsembleEvaluationReport.DISPLAY_NAME, "results", f"table {number}: {error}") from None
        rows += told_apart(tables)
    return rows


def told_apart(tables: Tables) -> list[Measurement]:
    """The measurements of a node's several runs; pictures that have one key in two of them are told apart by the run's number."""
    keys = [{row.key for row in table} for table in tables]
    distinct = len(set().union(*keys)) == sum(map(len, keys))
    return [
        row if distinct else replace(row, key=f"run {number}: {row.key}")
        for number, table in enumerate(tables, start=1)
        for row in table
    ]


def _shown(
    rows: Sequence[Measurement], pictures: Sequence[torch.Tensor]
) -> tuple[list[Measurement], dict[str, np.ndarray]]:
    """The measurements with their pictures' names, and the pictures (H, W, 3) by them."""
    keys = list(dict.fromkeys(row.key for row in rows))
    if len(keys) != len(pictures):
        raise InputError(
            EnsembleEvaluationReport.DISPLAY_NAME,
            "images",
            f"{len(pictures)} pictures came, the tables are about {len(keys)}; connect those that were measured",
        )
    shown = {key: picture[..., :3].cpu().float().numpy() for key, picture in zip(keys, pictures, strict=True)}
    return [replace(row, picture=row.key) for row in rows], shown
