"""The factory: prompts -> pictures -> poses -> a database, with any workflow on a ComfyUI server (ASTRA, section 3.1).

Every prompt is tried until a pose passes: the picture is made, scored against its prompt, its pose found and checked;
a try that fails anywhere is repeated with a new seed. Each step is in a journal before the next begins, so a run that
is killed goes on where it was, and the database is always made from the journal as a whole: no entry is lost or comes
twice.

The workflow, in API form, says ``%prompt%`` where the prompt goes (and ``%question%`` for a vision-language model);
every ``seed`` and ``noise_seed`` gets the try's seed. Its first picture is kept. A pose is read from any Preview as
Text node that shows POSE_KEYPOINT, a rating from one that shows a model's answer to the question.

    python dev.py python -m comfyui_ensemble.pose_db.factory --help
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..batch.journal import Event, Journal, open_journal
from ..batch.queue_client import QueueClient, QueueResult, Workflow
from ..models_info.files import whole_file
from .alignment import DEFAULT_WEIGHTS, alignment_score, parse_answer, structured_question
from .database import PoseDatabase, PoseEntry, append_entries
from .encoder import SentenceEncoder
from .exchange import OPENPOSE_SUFFIX, body_people, entry_from_frame, picture_size, read_openpose_file
from .keypoints import PoseFrame, check_frames, frame_from_people
from .prompt_axes import Variation
from .quality import QualityLimits, check_pose

KIND = "ensemble-pose-factory"  # of its journal
PROMPT, QUESTION = "%prompt%", "%question%"
SEEDS = ("seed", "noise_seed")
PLAN_KEY = "factory_plan"  # in a database's metadata: the plan that made it


class FactoryError(RuntimeError):
    """A run that cannot begin or go on; the message is one sentence."""


@dataclass(frozen=True)
class Plan:
    """What a run makes.

    Attributes:
        prompts: one entry each.
        workflow: API form, see the module.
        seed: the seeds of all tries follow from it.
        tries: pictures at most for one prompt.
        threshold: lowest alignment score; None makes no use of ratings.
        weights: of subject, interaction and detail.
        poses: folder in which another program writes ``<picture>_keypoints.json``; None reads poses from the workflow.
        limits: of the pose check.
    """

    prompts: Sequence[Variation]
    workflow: Workflow
    seed: int = 0
    tries: int = 5
    threshold: float | None = None
    weights: tuple[float, float, float] = DEFAULT_WEIGHTS
    poses: Path | None = None
    limits: QualityLimits = field(default_factory=QualityLimits)

    def digest(self) -> str:
        """Identifies all that decides about an entry; more tries and another poses folder continue the same run."""
        decisive = replace(self, tries=0, poses=None)
        return hashlib.sha256(json.dumps(asdict(decisive), sort_keys=True).encode()).hexdigest()


@dataclass
class Progress:
    """How far one entry is: the try it is at, that try's picture event, and the accepted event."""

    attempt: int = 0
    picture: Event | None = None
    accepted: Event | None = None


@dataclass(frozen=True)
class Summary:
    """Entries of a run: in the database, without a good pose after all tries, and waiting for their pose file."""

    accepted: int
    given_up: int
    waiting: int


def seed_of(seed: int, entry: int, attempt: int) -> int:
    """The sampler's seed for one try; always the same, so that a try cut off is repeated as it was. Below 2^48."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{entry}/{attempt}".encode()).digest()[:6], "big")


def stem_of(entry: int, attempt: int) -> str:
    """The name of one try's picture, without its ending."""
    return f"{entry:05d}_{attempt:02d}"


def fill_workflow(workflow: Workflow, prompt: str, seed: int) -> Workflow:
    """A copy of the workflow with prompt, question and seed in place."""
    filled = copy.deepcopy(workflow)
    question = structured_question(prompt)
    for node in filled.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = value.replace(QUESTION, question).replace(PROMPT, prompt)
            elif name in SEEDS and isinstance(value, int):
                node["inputs"][name] = seed
    return filled


def check_workflow(workflow: Any) -> None:
    """A FactoryError where a workflow is not in API form or says nowhere where the prompt goes."""
    nodes = list(workflow.values()) if isinstance(workflow, dict) else []
    if not nodes or not all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        raise FactoryError("the workflow is not in API form; save it with Workflow > Export (API)")
    if not any(PROMPT in value for node in nodes for value in node["inputs"].values() if isinstance(value, str)):
        raise FactoryError(f"the workflow has no {PROMPT}; write it into the text box where the prompt goes")


def replay(events: Sequence[Event], entries: int) -> list[Progress]:
    """Where every entry stands after these events."""
    progress = [Progress() for _ in range(entries)]
    for event in events:
        if event["event"] == "start":
            continue
        state = progress[event["entry"]]
        if event["event"] == "picture":
            state.picture = event
        elif event["event"] == "rejected":
            state.attempt, state.picture = event["attempt"] + 1, None
        elif event["event"] == "accepted":
            state.accepted = event
    return progress


def run_factory(plan: Plan, client: QueueClient, work: Path, say: Callable[[str], None]) -> Summary:
    """Begin or continue a run in the folder `work`.

    Raises:
        FactoryError, QueueError, JournalError: it cannot begin or go on; what is done so far is kept.
    """
    check_workflow(plan.workflow)
    with open_journal(work, plan.digest(), KIND) as journal:
        progress = replay(journal.events, len(plan.prompts))
        waiting = 0
        for entry, state in enumerate(progress):
            waiting += not _finish_entry(plan, client, work, journal, entry, state, say)
    accepted = sum(state.accepted is not None for state in progress)
    return Summary(accepted, len(progress) - accepted - waiting, waiting)


def _finish_entry(
    plan: Plan,
    client: QueueClient,
    work: Path,
    journal: Journal,
    entry: int,
    state: Progress,
    say: Callable[[str], None],
) -> bool:
    """Try one entry until it is accepted or given up; False where its pose file is still to come."""
    prompt = plan.prompts[entry].prompt
    while state.accepted is None and state.attempt < plan.tries:
        if state.picture is None:
            state.picture = _make_picture(plan, client, work, journal, entry, state.attempt)
        rejected, frame = _alignment_problem(plan, state.picture), None
        if rejected is None:
            frame = _pose(plan, state.picture, work)
            if frame is None:
                say(f"{entry + 1}/{len(plan.prompts)} waits for {stem_of(entry, state.attempt)}{OPENPOSE_SUFFIX}")
                return False
            rejected = _pose_problem(plan, entry, frame)
        if rejected is None and frame is not None:
            body = frame_from_people(body_people(frame), frame["canvas_width"], frame["canvas_height"])
            state.accepted = journal.write("accepted", entry=entry, attempt=state.attempt, frame=body)
            say(f"{entry + 1}/{len(plan.prompts)} accepted at try {state.attempt + 1}: {prompt}")
        else:
            journal.write("rejected", entry=entry, attempt=state.attempt, reason=rejected)
            say(f"{entry + 1}/{len(plan.prompts)} try {state.attempt + 1} rejected: {rejected}")
            state.attempt, state.picture = state.attempt + 1, None
    return True


def _make_picture(plan: Plan, client: QueueClient, work: Path, journal: Journal, entry: int, attempt: int) -> Event:
    seed = seed_of(plan.seed, entry, attempt)
    result = client.run(fill_workflow(plan.workflow, plan.prompts[entry].prompt, seed))
    if not result.pictures:
        raise FactoryError("the workflow saves no picture; add a Save Image node")
    ending = Path(result.pictures[0]["filename"]).suffix
    name = stem_of(entry, attempt) + ending
    with whole_file(work / "pictures" / name) as temporary:
        temporary.write_bytes(client.fetch(result.pictures[0]))
    values = {"file": name, "seed": seed, "frame": frame_in(result.texts), "ratings": _ratings(plan, result)}
    return journal.write("picture", entry=entry, attempt=attempt, **values)


def frame_in(texts: Sequence[str]) -> PoseFrame | None:
    """The first OpenPose frame that a node showed as text."""
    for text in texts:
        try:
            return dict(check_frames(json.loads(text))[0])
        except (ValueError, TypeError):
            continue
    return None


def _ratings(plan: Plan, result: QueueResult) -> list[float] | str | None:
    """Subject, interaction and detail; or why the answer cannot be read; None where nobody asked."""
    if plan.threshold is None:
        return None
    answers = [text for text in result.texts if frame_in([text]) is None]
    if not answers:
        raise FactoryError("the workflow shows no rating; connect a Preview as Text node to the model's answer")
    problem = ""
    for answer in answers:
        try:
            return list(parse_answer(answer))
        except ValueError as error:
            problem = str(error)
    return problem


def _pose(plan: Plan, picture: Event, work: Path) -> PoseFrame | None:
    """The pose of a try; None where its file is not there yet."""
    if plan.poses is not None:
        path = plan.poses / (Path(picture["file"]).stem + OPENPOSE_SUFFIX)
        return (
            read_openpose_file(path, picture_size(work / "pictures" / picture["file"]))[0] if path.is_file() else None
        )
    if picture["frame"] is None:
        raise FactoryError(
            "the workflow shows no pose; connect Preview as Text to a POSE_KEYPOINT output, or give a poses folder"
        )
    return picture["frame"]


def _alignment_problem(plan: Plan, picture: Event) -> str | None:
    """Why the picture does not fit its prompt, or None."""
    ratings = picture["ratings"]
    if plan.threshold is None:
        return None
    if isinstance(ratings, str):
        return ratings
    score = float(alignment_score(ratings, plan.weights))
    return None if score >= plan.threshold else f"the alignment score {score:.2f} is below {plan.threshold:.2f}"


def _pose_problem(plan: Plan, entry: int, frame: PoseFrame) -> str | None:
    """Why the pose is not good enough, or None."""
    variation = plan.prompts[entry]
    try:
        findings = check_pose(frame, variation.prompt, variation.tags.get("people"), plan.limits)
    except ValueError as error:
        return str(error)
    return "; ".join(str(finding) for finding in findings) or None


# The database


def accepted_entries(prompts: Sequence[Variation], events: Sequence[Event]) -> list[PoseEntry]:
    """The database entries of a run so far, in the order of its prompts."""
    return [
        entry_from_frame(state.accepted["frame"], variation.prompt, variation.tags)
        for variation, state in zip(prompts, replay(events, len(prompts)), strict=True)
        if state.accepted is not None
    ]


def build_database(
    base: PoseDatabase, entries: Sequence[PoseEntry], encoder: SentenceEncoder, plan: str
) -> PoseDatabase:
    """`base` with the entries, marked with the plan that made them."""
    embeddings = encoder.encode([entry.prompt for entry in entries])
    grown = append_entries(base, entries, embeddings)
    return replace(grown, info={**grown.info, PLAN_KEY: plan})


if __name__ == "__main__":
    from .factory_cli import main

    raise SystemExit(main())
