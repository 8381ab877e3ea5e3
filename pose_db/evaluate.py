"""How well and how fast retrieval works: measured on the held-out prompts in ``data/held_out.json``.

The held-out set has paraphrases, each with the actions that count as right, and prompts about things that are no pose.
None was made from the database's own phrasings. It is split into a fitting half, on which the threshold is chosen, and
a reporting half, on which every figure is taken.

    python -m comfyui_ensemble.pose_db.evaluate --out FOLDER
    python -m comfyui_ensemble.pose_db.evaluate --index-entries 1000000 --out FOLDER
    python -m comfyui_ensemble.pose_db.evaluate --lists --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..models_info.files import whole_file
from .database import load_database
from .encoder import SentenceEncoder, bundled_minilm_folder
from .index import (
    build_list_index,
    embeddings_checksum,
    load_list_index,
    sample_queries,
    save_list_index,
    share_found,
)
from .normalizer import normalize_by_rules
from .retriever import DEFAULT_THRESHOLD, PoseRetriever
from .synthetic import SyntheticEmbeddings

DATA = Path(__file__).parent / "data"
FIT, REPORT = "fit", "report"
# How the same prompts look in many a graph: quality tags, light, lens, a LoRA.
NOISE = "(masterpiece:1.2), best quality, {}, cinematic lighting, golden hour, 85mm, bokeh, 8k <lora:film:0.8>"
QUERIES: dict[str, Callable[[str], str]] = {
    "normalized": normalize_by_rules,
    "raw": str,
    "noisy_normalized": lambda prompt: normalize_by_rules(NOISE.format(prompt)),
    "noisy_raw": NOISE.format,
}
THRESHOLDS = np.round(np.arange(0.20, 0.901, 0.01), 2)


@dataclass(frozen=True)
class Case:
    """One held-out prompt.

    Attributes:
        prompt: as a person would write it.
        actions: ids that count as right; empty where no pose fits.
        half: ``FIT`` or ``REPORT``.
    """

    prompt: str
    actions: tuple[str, ...]
    half: str


@dataclass(frozen=True)
class Answers:
    """What retrieval said to a list of n cases.

    Attributes:
        scores: (n,) cosine of the best entry.
        right: (n,) bool, its action is among the case's.
        fits: (n,) bool, the case has an action at all.
    """

    scores: np.ndarray
    right: np.ndarray
    fits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the paraphrases whose best entry shows the right action, whatever its score."""
        return float(self.right[self.fits].mean())


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1 at each of `THRESHOLDS`, (t,) each."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> int:
        """Position of the best F1; the middle one where several are equal."""
        return int(np.median(np.flatnonzero(self.f1 == self.f1.max())))


def load_held_out(path: Path = DATA / "held_out.json") -> list[Case]:
    """The held-out prompts."""
    data = json.loads(path.read_text(encoding="utf-8"))
    cases = [Case(row["prompt"], tuple(row["actions"]), row["half"]) for row in data["paraphrases"]]
    return cases + [Case(row["prompt"], (), row["half"]) for row in data["out_of_domain"]]


def ask(retriever: PoseRetriever, cases: Sequence[Case], query: Callable[[str], str]) -> Answers:
    """Search for every case, its prompt turned into a query by `query`."""
    found = retriever.search_all([query(case.prompt) for case in cases], 1)
    scores = [matches[0].score for matches in found]
    tags = [retriever.database.tags[matches[0].entry] for matches in found]
    right = [tag["action"] in case.actions for tag, case in zip(tags, cases, strict=True)]
    return Answers(np.array(scores), np.array(right), np.array([bool(case.actions) for case in cases]))


def measure_time(retriever: PoseRetriever, prompts: Sequence[str]) -> float:
    """Median milliseconds from a prompt to its best entry, normalisation included, after a first search."""
    retriever.search("the first search loads the sentence model", 1)
    seconds = []
    for prompt in prompts:
        start = time.perf_counter()
        retriever.search(normalize_by_rules(prompt), 1)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def measure_curve(answers: Answers) -> Curve:
    """Precision, recall and F1 of "found" over thresholds.

    A pose counts as correct when its score reaches the threshold and its action is right. Precision is the share of
    correct ones among the poses found, so a wrong action and a pose for a landscape both cost; recall is their share
    among the paraphrases.
    """
    found = answers.scores[None] >= THRESHOLDS[:, None]  # (t, n)
    correct = (found & answers.right).sum(axis=1)
    precision = correct / np.maximum(found.sum(axis=1), 1)
    recall = correct / answers.fits.sum()
    f1 = 2 * correct / np.maximum(found.sum(axis=1) + answers.fits.sum(), 1)
    return Curve(precision, recall, f1)


def summarize(answers: Answers, threshold: float) -> dict[str, float]:
    """The figures of one half at one threshold."""
    curve = measure_curve(answers)
    at = int(np.argmin(np.abs(THRESHOLDS - threshold)))
    found = answers.scores >= THRESHOLDS[at]
    return {
        "top1_action_accuracy": answers.accuracy,
        "precision": float(curve.precision[at]),
        "recall": float(curve.recall[at]),
        "f1": float(curve.f1[at]),
        "paraphrases_found": float(found[answers.fits].mean()),
        "out_of_domain_found": float(found[~answers.fits].mean()),
    }


def evaluate(retriever: PoseRetriever, cases: Sequence[Case], names: Iterable[str] = QUERIES) -> dict:
    """What the docs state about retrieval, for each of the `QUERIES` in `names`."""
    result: dict = {"database": retriever.database.name, "entries": len(retriever.database)}
    for name in names:
        query = QUERIES[name]
        fitted = ask(retriever, [case for case in cases if case.half == FIT], query)
        reported = ask(retriever, [case for case in cases if case.half == REPORT], query)
        threshold = float(THRESHOLDS[measure_curve(fitted).best()])
        curve = measure_curve(reported)
        result[name] = {
            "threshold": threshold,
            "fit": summarize(fitted, threshold),
            "report": summarize(reported, threshold),
            "report_at_default": summarize(reported, DEFAULT_THRESHOLD),
            "curve": {key: np.round(values, 4).tolist() for key, values in asdict(curve).items()},
        }
    result["default_threshold"] = DEFAULT_THRESHOLD
    result["thresholds"] = THRESHOLDS.tolist()
    return result


def draw_curve(result: dict) -> Image.Image:
    """Precision, recall and F1 over the threshold on the reporting half, normalised prompts."""
    width, height, left, top = 820, 480, 70, 40
    right, bottom = width - 30, height - 60
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    low, high = result["thresholds"][0], result["thresholds"][-1]

    def place(threshold: float, share: float) -> tuple[float, float]:
        return left + (threshold - low) / (high - low) * (right - left), bottom - share * (bottom - top)

    for share in np.linspace(0, 1, 6):
        draw.line([place(low, share), place(high, share)], "#dddddd")
        draw.text((left - 12, place(low, share)[1]), f"{share:.1f}", "black", font, anchor="rm")
    for threshold in np.arange(low, high + 0.001, 0.1):
        draw.text((place(threshold, 0)[0], bottom + 8), f"{threshold:.1f}", "black", font, anchor="mt")
    chosen = result["default_threshold"]
    draw.line([place(chosen, 0), place(chosen, 1)], "#888888", 1)
    draw.text((place(chosen, 1)[0], top - 6), f"threshold {chosen:.2f}", "#555555", font, anchor="mb")
    for row, (name, colour) in enumerate((("precision", "#1f77b4"), ("recall", "#ff7f0e"), ("f1", "#2ca02c"))):
        values = result["normalized"]["curve"][name]
        draw.line([place(x, y) for x, y in zip(result["thresholds"], values, strict=True)], colour, 3)
        draw.line([(left + 20, bottom - 70 + 20 * row), (left + 50, bottom - 70 + 20 * row)], colour, 3)
        draw.text((left + 58, bottom - 70 + 20 * row), name.replace("f1", "F1"), "black", font, anchor="lm")
    draw.text(((left + right) / 2, height - 14), "threshold on the cosine", "black", font, anchor="mb")
    return picture


def measure_index(count: int, folder: Path, queries: int = 1000) -> dict[str, float]:
    """The inverted file of `count` synthetic entries: its recall@1 against the exact search, and its speed."""
    import faiss

    synthetic = SyntheticEmbeddings(count)
    vectors, asked = synthetic.entries(0, count), synthetic.queries(queries)
    path, checksum = folder / "synthetic.index", embeddings_checksum(vectors)
    start = time.perf_counter()
    save_list_index(build_list_index(vectors), path, checksum)
    built = time.perf_counter()
    index = load_list_index(path, checksum)
    loaded = time.perf_counter()
    truth = faiss.knn(asked, vectors, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
    seconds, hits = [], 0
    for query, entry in zip(asked, truth, strict=True):
        begin = time.perf_counter()
        hits += int(index.search(query, 1)[1][0] == entry)
        seconds.append(time.perf_counter() - begin)
    return {
        "entries": count,
        "queries": queries,
        "lists": len(index.centres),
        "lists_read": index.visits,
        "build_seconds": built - start,
        "open_seconds": loaded - built,
        "recall_at_1": hits / queries,
        "median_ms": 1000 * float(np.median(seconds)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
    }


def measure_lists(vectors: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """How often an inverted file finds the best entry, for prompts and for what stands for them while it is built.

    Args:
        vectors, prompts: embeddings of entries and of prompts, (n, 384) and (m, 384).

    Returns:
        "chosen", how many lists a search reads, and for each power of two the two shares found.
    """
    index, rng = build_list_index(vectors), np.random.default_rng(1)
    chosen, found = index.visits, {}
    asked = {"prompts": prompts, "samples": sample_queries(vectors[rng.choice(len(vectors), 1000)], rng)}
    best = {name: (queries @ vectors.T).max(axis=1) for name, queries in asked.items()}
    for power in range(2, len(index.centres).bit_length()):
        index.visits = 2**power
        found[index.visits] = {name: share_found(index, queries, best[name]) for name, queries in asked.items()}
    return {"lists": len(index.centres), "chosen": chosen, "found": found}


def write_json(path: Path, value: dict) -> None:
    """Write `value` as readable JSON, wholly or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure retrieval on the held-out prompts, or the index at scale.")
    parser.add_argument("--database", type=Path, default=DATA / "ensemble_poses.safetensors", help="what to search")
    parser.add_argument("--encoder", type=Path, default=bundled_minilm_folder(), help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures (JSON) and the curve (PNG)")
    parser.add_argument("--index-entries", type=int, help="measure the index with this many synthetic entries instead")
    parser.add_argument("--lists", action="store_true", help="measure the database, however small, as an inverted file")
    arguments = parser.parse_args()
    if arguments.lists:
        prompts = SentenceEncoder(arguments.encoder).encode([case.prompt for case in load_held_out() if case.actions])
        figures = measure_lists(load_database(arguments.database).embeddings, prompts)
        write_json(arguments.out / "retrieval_lists.json", figures)
        print(json.dumps(figures, indent=1))  # noqa: T201
        return
    if arguments.index_entries is not None:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure_index(arguments.index_entries, Path(folder))
        write_json(arguments.out / "retrieval_index.json", figures)
        print(json.dumps(figures, indent=1))  # noqa: T201
        return
    retriever, cases = PoseRetriever(load_database(arguments.database), arguments.encoder), load_held_out()
    result = evaluate(retriever, cases)
    result["median_ms"] = measure_time(retriever, [case.prompt for case in cases[:100]])
    write_json(arguments.out / "retrieval_f1.json", result)
    with whole_file(arguments.out / "retrieval_f1.png") as temporary:
        draw_curve(result).save(temporary, format="PNG")
    print(f"{result['median_ms']:.1f} ms a retrieval (median)")  # noqa: T201
    for name in QUERIES:
        print(f"{name}: best threshold on the fitting half {result[name]['threshold']:.2f}")  # noqa: T201
        print(json.dumps({key: result[name][key] for key in ("fit", "report", "report_at_default")}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
