"""The command line: build a benchmark, measure its pictures, write a report.

    python -m comfyui_ensemble.evaluation benchmark NAME DATASET --out BENCHMARK
    python -m comfyui_ensemble.batch BENCHMARK/queues/.../workflow.json BENCHMARK/queues/.../jobs.jsonl --out PICTURES ...
    python -m comfyui_ensemble.evaluation measure BENCHMARK PICTURES [PICTURES ...] --out RESULTS
    python -m comfyui_ensemble.evaluation report RESULTS

Every step can be started again: `measure` goes on where it was cut off. Ends with 0, with 2 and one sentence when it cannot begin
or go on, with 130 when it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..batch.live_line import LiveLine
from .benchmarks.build import BUILDERS, build
from .benchmarks.folder import Benchmark
from .errors import EvaluationError
from .paper_tables import benchmarks
from .report_summary import Context

PROGRAM = "python dev.py python -m comfyui_ensemble.evaluation"
BATCH = "python dev.py python -m comfyui_ensemble.batch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, see the module."""
    chosen = _parser().parse_args(arguments)
    line = LiveLine()
    try:
        chosen.run(chosen, line)
    except KeyboardInterrupt:
        line.say("Stopped; the same command goes on.")
        return 130
    except (EvaluationError, OSError) as error:  # a missing model file is an OSError too
        line.say(f"{_sentence(error)}.")
        return 2
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).rstrip(".")


def _benchmark(chosen: argparse.Namespace, line: LiveLine) -> None:
    made = build(chosen, lambda done, total: line.show(f"{done}/{total}", keep=done == total))
    line.say(f"{len(made.cases)} pictures to make; the workflows and jobs are in {made.folder / 'queues'}. Next:")
    for command in _next_steps(made):
        line.say(f"  {command}")


def _next_steps(made: Benchmark) -> list[str]:
    """The commands that make and measure a benchmark's pictures."""
    pictures = made.folder.with_name(f"{made.folder.name}_pictures")
    commands = []
    for name in made.queues:
        options = ["--name", "{key}", "--out", str(pictures / name), "--server", "http://127.0.0.1:8188"]
        commands.append([*BATCH.split(), *_queue(made, name), *options])
    results = made.folder.with_name(f"{made.folder.name}_results")
    folders = [str(pictures / name) for name in made.queues]
    commands.append([*PROGRAM.split(), "measure", str(made.folder), *folders, "--out", str(results)])
    commands.append([*PROGRAM.split(), "report", str(results)])
    return [shlex.join(command) for command in commands]


def _queue(made: Benchmark, name: str) -> list[str]:
    return [str(made.folder / "queues" / name / file) for file in ("workflow.json", "jobs.jsonl")]


def _measure(chosen: argparse.Namespace, line: LiveLine) -> None:
    from ..models_info.headless import tell_host_of_devices

    tell_host_of_devices()
    import folder_paths

    from ..models_info.registry import register_folders
    from .arguments import load_tools, pairs
    from .gather import gather
    from .measure import OKS, collect, digests_of, files_of, measure_all, plan_of
    from .measured import RESULTS, open_measured, write_results
    from .oks_precision import precision_of
    from .results import means

    if chosen.models_dir is not None:
        if not chosen.models_dir.is_dir():
            raise EvaluationError(f"--models-dir: there is no folder {chosen.models_dir}; give ComfyUI's models folder")
        folder_paths.models_dir = str(chosen.models_dir.absolute())
    register_folders()
    gathered = gather(chosen.source, chosen.made, pairs(chosen.reference, "--reference", bool))
    missing = len(gathered.cases) - len(gathered.pictures)
    if missing:
        line.say(f"{missing} of {len(gathered.cases)} pictures have not been made yet.")
    tools, digests = load_tools(chosen, gathered), digests_of(gathered)
    with open_measured(chosen.out, plan_of(gathered, chosen.whole, tools.finders)) as measured:
        try:
            measure_all(
                tools.scorers,
                gathered,
                digests,
                measured,
                lambda metric, done, total: line.show(f"{metric}: {done}/{total}", keep=done == total),
                tools.asker.forget,
            )
        finally:  # what there is, also when it was stopped
            found = collect(tools.scorers, gathered, digests, measured)
            write_results(chosen.out, found, files_of(found, gathered), gathered.context())
    for mean in means(found):
        line.say(str(mean))
    ranked = precision_of([each for each in found if each.metric == OKS])
    if ranked:
        line.say(f"COCO's {', '.join(f'{name}: {value:.4f}' for name, value in ranked.items())}")
    line.say(f"{len(found)} measurements are in {chosen.out / RESULTS}.")


def _report(chosen: argparse.Namespace, line: LiveLine) -> None:
    from .measured import read_measured
    from .report import write_report

    read = [read_measured(path) for path in chosen.results]
    found = [measurement for measurements, _files, _context in read for measurement in measurements]
    files = {name: path for _measurements, files, _context in read for name, path in files.items()}
    context = _joined([context for _measurements, _files, context in read], chosen.benchmark)
    first = chosen.results[0]
    folder = chosen.out or (first if first.is_dir() else first.parent) / "report"
    report = write_report(found, folder, chosen.title, pictures=files, name=chosen.name, context=context)
    line.say(f"The report is in {report.page}; {report.markdown} has its tables for documents.")


def _joined(contexts: Sequence[Context], benchmark: str | None) -> Context:
    """What is known of the pictures of several tables; papers' rows where all are of one benchmark."""
    groups = {key: group for each in contexts for key, group in (each.groups or {}).items()}
    parts = {key: part for each in contexts for key, part in (each.parts or {}).items()}
    names = {each.benchmark for each in contexts}
    own = names.pop() if len(names) == 1 else ""
    return Context(own if benchmark is None else benchmark, groups or None, parts or None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Benchmarks, metrics and reports.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_benchmark(commands.add_parser("benchmark", help="make a benchmark's jobs from its dataset"))
    _add_measure(commands.add_parser("measure", help="measure pictures; goes on where it was cut off"))
    _add_report(commands.add_parser("report", help="tables, plots and a page with the pictures, worst first"))
    return parser


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="benchmark", required=True, metavar="NAME")
    for name, builder in BUILDERS.items():
        one = names.add_parser(name, help=builder.help, description=builder.help)
        one.add_argument("dataset", type=Path, help="the dataset's folder")
        one.add_argument("--out", type=Path, required=True, help="folder for manifest, pictures and queues")
        one.add_argument(
            "--workflow", default=builder.workflow, help="a bundled one's name or a file in API form (%(default)s)"
        )
        one.add_argument("--seed", type=int, default=0, help="of the pictures and of all that is drawn (%(default)s)")
        builder.options(one)
        one.set_defaults(run=_benchmark)


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a benchmark's folder, a manifest (JSONL), or a folder of pictures")
    parser.add_argument(
        "made", type=Path, nargs="*", help="folders with the benchmark's pictures, as `batch` wrote them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; the same one continues")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="those of the benchmark's papers without it"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="METRIC=PATH",
        help="measure a metric with this folder or ONNX file",
    )
    parser.add_argument("--models-dir", type=Path, help="ComfyUI's models folder, where it is not the usual one")
    parser.add_argument("--poses", type=Path, help="folder of OpenPose files called by the pictures' names")
    parser.add_argument(
        "--detector", nargs="?", const="", metavar="FOLDER", help="find subjects by their descriptions (Grounding DINO)"
    )
    parser.add_argument("--whole", action="store_true", help="compare whole pictures, wherever their subjects are")
    parser.add_argument(
        "--reference", action="append", default=[], metavar="NAME=FILE", help="a subject of every picture of a folder"
    )
    parser.set_defaults(run=_measure)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="+", help="folders that `measure` wrote, or files of results")
    parser.add_argument("--out", type=Path, help="folder for the report; 'report' in the first results without it")
    parser.add_argument("--title", default="Evaluation")
    parser.add_argument("--name", default="this run", help="of the row beside the papers' (%(default)s)")
    parser.add_argument("--benchmark", choices=benchmarks(), help="whose papers' rows to show, for results of none")
    parser.set_defaults(run=_report)
