"""Measurements -> a folder with a report: a page with the pictures, tables beside the papers' rows, plots."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..models_info.files import whole_file
from .errors import EvaluationError
from .report_order import worst_first
from .report_page import report_page
from .report_pictures import Pictures, data_address
from .report_plot import draw_plots
from .report_summary import Context, Summary, compare, summarise
from .report_text import measurements_csv, report_json, report_markdown
from .results import Measurement

PAGE, MARKDOWN, JSON, CSV, PLOT = "report.html", "report.md", "report.json", "measurements.csv", "scores.png"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML file; `markdown`, `json`, `csv` and `plot` lie beside it.
        picture: the plots, (H, W, 3) uint8.
        summaries: the means, those over everything before those of parts.
    """

    page: Path
    markdown: Path
    json: Path
    csv: Path
    plot: Path
    picture: np.ndarray
    summaries: tuple[Summary, ...]


def write_report(
    measurements: Sequence[Measurement],
    folder: Path,
    title: str = "Evaluation",
    *,
    pictures: Pictures | None = None,
    name: str = "this run",
    context: Context | None = None,
) -> Report:
    """Write a report; every file is whole or not there, and those of an earlier report are replaced.

    Args:
        measurements: in any order, of any metrics.
        folder: made when missing.
        pictures: what `picture` and `reference` of the measurements stand for: name -> file, or (H, W, 3) uint8 or float in
            [0, 1]. A name that is not in here is shown as text, whatever file may be called so.
        name: of the row that stands beside the papers'.
        context: the benchmark whose papers' rows are shown, and which pictures belong together.

    Raises:
        EvaluationError: there are no measurements, or no such benchmark.
        OSError: the disk does not take it.
    """
    if not measurements:
        raise EvaluationError("there are no measurements; measure something first")
    context, pictures = context or Context(), pictures or {}
    summaries = summarise(measurements, context)
    papers = compare(summaries, measurements, context)
    plots = draw_plots(measurements, summaries, papers, name)
    drawing = _png(plots)
    shots = worst_first(measurements)
    about = (title, name, context, summaries, papers)
    page = report_page(*about, shots, pictures, data_address(drawing, "png"))
    files = {
        MARKDOWN: report_markdown(*about, PLOT).encode(),
        JSON: report_json(*about).encode(),
        CSV: measurements_csv(measurements, context).encode(),
        PLOT: drawing,
        PAGE: page.encode(),
    }
    for file, content in files.items():
        with whole_file(folder / file) as temporary:
            temporary.write_bytes(content)
    return Report(
        page=folder / PAGE,
        markdown=folder / MARKDOWN,
        json=folder / JSON,
        csv=folder / CSV,
        plot=folder / PLOT,
        picture=np.asarray(plots),
        summaries=tuple(summaries),
    )


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
