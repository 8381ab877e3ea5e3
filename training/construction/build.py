"""A folder of pictures to two manifests, step by step.

`manifest.jsonl` has whole subjects (people, animals, things) with masks that do not overlap: for ASTRA and for AnyStory's
router. Their references are their own crops, or what an editing workflow makes of those. `pairs.jsonl` has single subjects
whose references come from other pictures: for One-for-All, and for AnyStory's encoder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...models_info.files import whole_file
from ..errors import TrainingError
from ..manifest import read_manifest, write_manifest
from ..manifest_rows import ManifestRow
from .models import Models
from .pairs import find_matches, judged
from .references import Crops, Reference, cut_crops, edit_references, look_at_crops
from .rows import pair_rows, subject_rows
from .seeing import Refused, Scene, describe, find_poses, find_subjects, mask_subjects
from .settings import BuildConfig
from .shots import take_pictures
from .steps import Report, Step

MANIFEST, PAIRS, SUMMARY = "manifest.jsonl", "pairs.jsonl", "report.json"
STEPS = "steps"


@dataclass(frozen=True)
class Built:
    """What a construction made.

    Attributes:
        manifest, pairs: the files; None where they would have had no row.
        summary: how many of what, and what was left out and why.
    """

    manifest: Path | None
    pairs: Path | None
    summary: Mapping[str, Any]


def build(folder: Path, out: Path, models: Models, config: BuildConfig, report: Report | None = None) -> Built:
    """Begin or continue a construction.

    Args:
        folder: of pictures, and of those in its folders.
        out: for the manifests and everything that they name.

    Raises:
        TrainingError, QueueError, JournalError, OSError: it cannot begin or go on; what is done so far is kept.
    """
    report = report or Report()
    if out.resolve() == folder.resolve() or out.resolve() in folder.resolve().parents:
        raise TrainingError(f"the pictures lie in {out}; give another folder for the data", "name")
    work = out / STEPS
    shots, problems = take_pictures(folder, out, work, config.min_side, report)
    refused: Refused = {name: [problem] for name, problem in problems.items()}
    described = describe(shots, models, work, report, refused)
    people = find_poses([shot for shot, _ in described], models, work, report)
    nobody = np.zeros((0, 18, 3))
    found = [find_subjects(shot, words, people.get(shot.key, nobody), config, refused) for shot, words in described]
    masks, scenes = mask_subjects(found, models, config, work, report, refused)
    cropping, crops = cut_crops(scenes, masks, config, work, report)
    looks = look_at_crops(scenes, crops, cropping, models, work, report)
    references = _references(scenes, crops, cropping, models, config, work, report, refused)
    separating = Step("instances", {"order": config.order}, work, (masks.identity,))
    rows = subject_rows(scenes, references, config, out, separating, report, refused)
    matches, unverified = find_matches(scenes, looks, config)
    if models.judge is not None:
        matches, denied = judged(matches, crops, models.judge, config, work, report)
        unverified = Counter(unverified) + Counter(denied)
    paired = pair_rows(matches, crops, out, refused)
    summary = {
        "pictures": len(shots),
        "pictures with subjects": len(scenes),
        "subjects": Counter(subject.category for row in rows for subject in row.subjects),
        "rows": len(rows),
        "pairs": Counter(match.category for match in matches),
        "pairs not verified": unverified,
        "left out": refused,
    }
    with whole_file(out / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
    if not rows and not paired:
        raise TrainingError(
            f"no subject was found in {folder}; {SUMMARY} in {out} says why, picture by picture", "folder"
        )
    return Built(_write(out / MANIFEST, rows, report), _write(out / PAIRS, paired, report), summary)


def _references(
    scenes: Sequence[Scene],
    crops: Crops,
    cropping: Step,
    models: Models,
    config: BuildConfig,
    work: Path,
    report: Report,
    refused: Refused,
) -> dict[tuple[str, int], Reference]:
    """The manifest's references by scene and subject: edited where there is an editor, the crops otherwise."""
    if models.editor is None:
        return {(key, number): crop for key, its in crops.items() for number, crop in enumerate(its)}
    edited, failed = edit_references(scenes, crops, cropping, models, models.editor, config, work, report)
    for scene, number, best in failed:
        words = scene.subjects[number].item.words
        refused.setdefault(scene.shot.name, []).append(f"no edit of '{words}' passed, the best CLIP-I is {best:.2f}")
    return edited


def _write(path: Path, rows: Sequence[ManifestRow], report: Report) -> Path | None:
    """Write a manifest and have a training's own reader look at all of it; without rows there is to be none."""
    if not rows:
        path.unlink(missing_ok=True)
        return None
    write_manifest(path, rows)
    if len(rows) > 1:  # a reader refuses a single row, which more pictures may yet join

        def progress(done: int, total: int) -> None:
            report.check()
            report.progress(path.name, done, total)

        read_manifest(path, progress)
    return path


def summary_lines(summary: Mapping[str, Any], shown: int = 10) -> str:
    """A summary for people."""
    lines = [f"{summary['pictures']} pictures, {summary['pictures with subjects']} with subjects"]
    lines.append(f"{MANIFEST}: {_counts(summary['rows'], 'rows', summary['subjects'])}")
    lines.append(f"{PAIRS}: {_counts(sum(summary['pairs'].values()), 'pairs', summary['pairs'])}")
    if summary["pairs not verified"]:
        lines.append(f"not verified: {_listed(summary['pairs not verified'])}")
    left = [f"{name}: {problem}" for name, problems in summary["left out"].items() for problem in problems]
    if left:
        lines.append(f"left out ({len(left)}):")
        lines += [f"  {line}" for line in left[:shown]]
        lines += [f"  and {len(left) - shown} more; see {SUMMARY}"] if len(left) > shown else []
    return "\n".join(lines)


def _counts(count: int, what: str, categories: Mapping[str, int]) -> str:
    return f"{count} {what}" + (f" ({_listed(categories)})" if categories else "")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
