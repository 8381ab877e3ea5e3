"""DreamBench: 30 subjects, 25 prompts each; and pairs of its subjects, 30 combinations with 25 prompts each, as ASTRA's Table 2
has it (section 4.1).

The folder is ``dataset`` of github.com/google/dreambooth: a folder of pictures a subject, and ``prompts_and_classes.txt``. A
subject's first picture is given to the model; scores of likeness are means over all of them, as DreamBooth has it. Which 30 pairs
are meant is published nowhere: they are drawn here, of subjects of different classes, unless a file names them.

Source: Ruiz et al., "DreamBooth", CVPR 2023.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cases import Case, CaseSubject
from ..errors import EvaluationError
from .folder import Gallery, pictures_in, shuffled

PAPERS, PAPERS_PAIRS, WORKFLOW = "dreambench", "dreambench-multi", "astra_multi_subject"
LIVE = ("cat", "dog")  # the classes that have the prompts for live subjects
PAIRS = 30
SEEDS, SEEDS_PAIRS = 4, 6  # pictures of each prompt
FILE = "prompts_and_classes.txt"
REMEDY = "give the folder 'dataset' of github.com/google/dreambooth"
_PROMPT = re.compile(r"""^\s*(['"])(.*\{0\} \{1\}.*)\1\s*\.format\(""")


@dataclass(frozen=True)
class Thing:
    """A subject of the dataset."""

    name: str
    kind: str
    pictures: tuple[Path, ...]

    @property
    def is_live(self) -> bool:
        return self.kind in LIVE


@dataclass(frozen=True)
class DreamBench:
    """The dataset.

    Attributes:
        things: by name.
        prompts: for objects and for live subjects, with {} for the subject's words.
    """

    things: dict[str, Thing]
    prompts: dict[bool, list[str]]

    def prompts_for(self, things: Sequence[Thing]) -> list[str]:
        """Those for live subjects where all are alive."""
        return self.prompts[all(thing.is_live for thing in things)]


def read_dreambench(dataset: Path) -> DreamBench:
    """The dataset in a folder.

    Raises:
        EvaluationError: it is not there, or not whole.
    """
    try:
        lines = (dataset / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise EvaluationError(f"there is no {FILE} in {dataset}; {REMEDY}") from None
    kinds = dict(_classes(lines))
    objects, live = _prompts(lines)
    if not (kinds and objects and live):
        raise EvaluationError(f"{dataset / FILE} names no subjects or no prompts of both kinds; {REMEDY}")
    things = {name: Thing(name, kind, tuple(pictures_in(dataset / name, REMEDY))) for name, kind in kinds.items()}
    return DreamBench(things, {False: objects, True: live})


def _classes(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(subject, class) of the table below subject_name,class."""
    begun = False
    for line in map(str.strip, lines):
        if line == "subject_name,class":
            begun = True
        elif begun and line.count(",") == 1:
            name, kind = line.split(",")
            yield name.strip(), kind.strip()
        elif begun and line:
            return


def _prompts(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of objects, and of live subjects, which come second."""
    live = next((number for number, line in enumerate(lines) if line.startswith("Live Subject Prompts")), len(lines))
    found: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(lines):
        prompt = _PROMPT.match(line)
        if prompt:
            found[number > live].append(prompt[2].replace("{0} {1}", "{}"))
    return found


def single_cases(dataset: Path, out: Path, seed: int, seeds: int, progress: Callable[[int, int], None]) -> list[Case]:
    """Every subject with every prompt and as many seeds."""
    bench = read_dreambench(dataset)
    return _cases(bench, [(thing,) for thing in bench.things.values()], out, seed, seeds, progress)


def pair_cases(
    dataset: Path,
    out: Path,
    seed: int,
    seeds: int,
    pairs: int,
    named: Sequence[tuple[str, str]] | None,
    progress: Callable[[int, int], None],
) -> list[Case]:
    """Every pair with every prompt and as many seeds.

    Args:
        named: the pairs, instead of drawing so many.
    """
    bench = read_dreambench(dataset)
    chosen = _drawn_pairs(bench, seed, pairs) if named is None else _named_pairs(bench, named)
    return _cases(bench, chosen, out, seed, seeds, progress)


def _drawn_pairs(bench: DreamBench, seed: int, count: int) -> list[tuple[Thing, ...]]:
    """Pairs of different classes, in which subjects come about equally often."""
    names = shuffled(itertools.combinations(sorted(bench.things), 2), seed, "pairs")
    names = [pair for pair in names if bench.things[pair[0]].kind != bench.things[pair[1]].kind]
    used = dict.fromkeys(bench.things, 0)
    chosen: list[tuple[Thing, ...]] = []
    while names and len(chosen) < count:
        pair = min(names, key=lambda pair: (used[pair[0]] + used[pair[1]], max(used[pair[0]], used[pair[1]])))
        names.remove(pair)
        used[pair[0]] += 1
        used[pair[1]] += 1
        chosen.append((bench.things[pair[0]], bench.things[pair[1]]))
    if len(chosen) < count:
        raise EvaluationError(f"the dataset has {len(chosen)} pairs of different classes, not {count}; lower --pairs")
    return sorted(chosen, key=lambda pair: [thing.name for thing in pair])


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The pairs that a file names, two subjects a line.

    Raises:
        EvaluationError: it names none, or a line says something else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise EvaluationError(f"--pairs-file: {path} cannot be read; write two subjects a line into it") from None
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, start=1):
        names = re.split(r"[,\s]+", line.strip())
        if names == [""]:
            continue
        if len(names) != 2 or names[0] == names[1] or tuple(names) in pairs:
            raise EvaluationError(
                f"--pairs-file: line {number} of {path.name} does not name a new pair of two subjects"
            )
        pairs[names[0], names[1]] = None
    if not pairs:
        raise EvaluationError(f"--pairs-file: {path.name} names no pair; write two subjects a line into it")
    return list(pairs)


def _named_pairs(bench: DreamBench, pairs: Sequence[tuple[str, str]]) -> list[tuple[Thing, ...]]:
    for name in itertools.chain.from_iterable(pairs):
        if name not in bench.things:
            raise EvaluationError(f"--pairs-file: the dataset has no subject '{name}'; write its folder's name")
    return [(bench.things[first], bench.things[second]) for first, second in pairs]


def _cases(
    bench: DreamBench,
    chosen: Sequence[tuple[Thing, ...]],
    out: Path,
    seed: int,
    seeds: int,
    progress: Callable[[int, int], None],
) -> list[Case]:
    gallery = Gallery(out)
    cases = []
    for place, things in enumerate(chosen, start=1):
        subjects = tuple(_subject(thing, gallery) for thing in things)
        name = "+".join(thing.name for thing in things)
        words = " and a ".join(thing.kind for thing in things)
        for number, prompt in enumerate(bench.prompts_for(things), start=1):
            for drawn in range(seed, seed + seeds):
                key = f"dreambench_{name}_p{number:02d}_s{drawn}"
                part = "live subjects" if all(thing.is_live for thing in things) else "objects"
                cases.append(Case(key, prompt.format(words), subjects, group=name, part=part, seed=drawn))
        progress(place, len(chosen))
    return cases


def _subject(thing: Thing, gallery: Gallery) -> CaseSubject:
    references = tuple(gallery.add(path, f"references/{thing.name}/{path.stem}") for path in thing.pictures)
    return CaseSubject(thing.name, thing.kind, "animal" if thing.is_live else "other", references)
