"""A report as one HTML page with the pictures in it, worst first. It runs no script and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .report_order import Shot
from .report_pictures import Pictures, embedded
from .report_summary import Comparison, Context, Summary
from .report_text import by_part, heading, how_measured, paper_rows, summary_rows
from .results import Measurement

SHOWN = 200  # pictures; more make a page that no browser likes
PICTURE_SIDE, REFERENCE_SIDE = 224, 96  # pixels
TEXT_LENGTH = 400  # letters of a prompt
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.6em 0}th,td{border:1px solid #ddd;padding:.25em .6em;text-align:left}
td.number{text-align:right;font-variant-numeric:tabular-nums}tr.ours{font-weight:bold;background:#fff4ee}
article{display:flex;gap:1em;border-top:1px solid #ddd;padding:1em 0}article>.shot{flex:0 0 224px}
img{max-width:100%;height:auto;background:#eee}.none{color:#a33}.text{color:#555}h3{margin:0 0 .3em;overflow-wrap:anywhere}
figure{display:inline-block;margin:0 .6em .4em 0;vertical-align:top;max-width:12em}figcaption{font-size:12px;overflow-wrap:anywhere}
"""


def report_page(
    title: str,
    name: str,
    context: Context,
    summaries: Sequence[Summary],
    papers: Sequence[Comparison],
    shots: Sequence[Shot],
    pictures: Pictures,
    plot: str,
) -> str:
    """The page.

    Args:
        shots: worst first.
        plot: address of the plots.
    """
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(how_measured(context))}</p>"]
    for part, chosen in by_part(summaries).items():
        body += [f"<h2>{escape(part)}</h2>"] if part else []
        body.append(_table([["metric", "mean", "measured", "not measured"], *map(list, summary_rows(chosen))]))
    for comparison in papers:
        body += [f"<h2>Beside {escape(heading(comparison))}</h2>", _table(paper_rows(comparison, name), ours=True)]
    body += [f'<p><img src="{plot}" alt="Scores of each metric"></p>', *_pictures(shots, pictures)]
    return _document(title, "\n".join(body))


def _document(title: str, body: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(rows: Sequence[Sequence[str]], ours: bool = False) -> str:
    """Headings first; the last row stands out where it is ours."""
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for place, row in enumerate(rest, start=1):
        cells = [f"<td{_number(column)}>{escape(cell)}</td>" for column, cell in enumerate(row)]
        lines.append(f"<tr{' class=ours' if ours and place == len(rest) else ''}>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _number(column: int) -> str:
    return "" if column == 0 else ' class="number"'


def _pictures(shots: Sequence[Shot], pictures: Pictures) -> list[str]:
    if not shots:
        return []
    shown, rest = shots[:SHOWN], len(shots) - SHOWN
    lines = ["<h2>Pictures, worst first</h2>"]
    lines.append("<p>Sorted by their mean place among all pictures, metric for metric.</p>")
    lines += [_article(place, shot, pictures) for place, shot in enumerate(shown, start=1)]
    return lines + ([f"<p>{rest} better ones are in measurements.csv alone.</p>"] if rest > 0 else [])


def _article(place: int, shot: Shot, pictures: Pictures) -> str:
    references = dict.fromkeys(each.reference for each in shot.measurements if each.reference)
    drawn = [reference for reference in references if reference in pictures]
    texts = [reference for reference in references if reference not in pictures]
    captions = {each.reference: each.subject for each in shot.measurements}
    return (
        f'<article><div class="shot">{_image(shot.picture, pictures, PICTURE_SIDE)}</div><div>'
        f"<h3>{place}. {escape(shot.key)}</h3>"
        + "".join(f'<p class="text">{escape(_short(text))}</p>' for text in texts)
        + "".join(_figure(reference, captions, pictures) for reference in drawn)
        + _scores(shot.measurements)
        + "</div></article>"
    )


def _figure(reference: str, captions: Mapping[str, str], pictures: Pictures) -> str:
    image = _image(reference, pictures, REFERENCE_SIDE)
    return f"<figure>{image}<figcaption>{escape(captions[reference])}</figcaption></figure>"


def _image(name: str, pictures: Pictures, side: int) -> str:
    address = embedded(pictures[name], side) if name in pictures else None
    if address is None:
        return '<span class="none">no picture</span>'
    return f'<img src="{address}" alt="{escape(name)}" title="{escape(name)}">'


def _scores(measurements: Sequence[Measurement]) -> str:
    rows = [["metric", "of", "score", "note"]]
    for each in measurements:
        score = "not measured" if each.score is None else f"{each.score:.4f}"
        rows.append([each.metric, each.subject, score, each.note])
    return _table(rows)


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
