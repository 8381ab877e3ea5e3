"""One-for-All's HumanBench (section 4.1, appendix C): 100 pairs of a face with clothing and a bag, in 3 scenes with 4 seeds each.

Its pictures are not published. The folder holds pictures in ``face``, ``upper``, ``lower``, ``dress`` and ``bag`` (the paper has
50, 50, 40, 10 and 20) with a description of each in a text file of its name: the first of the paper's two stages, in which a
language model describes every reference. The second puts the descriptions into a prompt of a scene.

Without bags it is what Table 6 measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cases import Case, CaseSubject
from ..errors import EvaluationError
from .folder import Gallery, pictures_in, shuffled, words_beside

PAPERS, PAPERS_GARMENTS, WORKFLOW = "humanbench", "humanbench-garments", "one_for_all_face_top_bottom_bag"
PAIRS, SEEDS = 100, 4
EXAMPLES = {
    "face": "a young woman with short black hair",
    "upper": "a white shirt with blue stripes",
    "lower": "dark green corduroy trousers",
    "dress": "a red dress with white dots",
    "bag": "a brown leather handbag",
}
CATEGORIES = {"face": "face", "upper": "upper garment", "lower": "lower garment", "dress": "dress", "bag": "bag"}
# {who} is the face's description, {wears} and {carries} follow a comma.
SCENES = {
    "urban street": "On a busy city street with shop windows and passers-by behind, {who} walks towards the camera,"
    " wearing {wears}{carries}.",
    "lifestyle indoor": "In a bright living room with a sofa and plants, {who} stands beside a window, wearing"
    " {wears}{carries}.",
    "minimalist studio": "In a minimalist studio with a plain light backdrop, {who} stands facing the camera, wearing"
    " {wears}{carries}.",
}


@dataclass(frozen=True)
class Item:
    """A reference of the dataset."""

    kind: str
    path: Path
    words: str


Outfit = tuple[Item, ...]


def human_cases(
    dataset: Path, out: Path, seed: int, seeds: int, pairs: int, bags: bool, progress: Callable[[int, int], None]
) -> list[Case]:
    """Every pair in every scene with as many seeds.

    Raises:
        EvaluationError: pictures or descriptions are missing, or are too few for so many different pairs.
    """
    kinds = [kind for kind in EXAMPLES if bags or kind != "bag"]
    items = {kind: _items(dataset, kind) for kind in kinds}
    outfits = draw_outfits(items, pairs, seed)
    gallery = Gallery(out)
    cases = []
    for place, outfit in enumerate(outfits, start=1):
        subjects = tuple(_subject(item, gallery) for item in outfit)
        for scene, text in SCENES.items():
            for drawn in range(seed, seed + seeds):
                pair = f"pair{place:03d}"
                key = f"humanbench_{pair}_{scene.replace(' ', '-')}_s{drawn}"
                cases.append(Case(key, scene_prompt(text, outfit), subjects, group=pair, part=scene, seed=drawn))
        progress(place, len(outfits))
    return cases


def _items(dataset: Path, kind: str) -> list[Item]:
    remedy = f"put pictures for {CATEGORIES[kind]} there, each with a text file of its name that describes it"
    pictures = pictures_in(dataset / kind, remedy)
    return [Item(kind, path, words_beside(path, EXAMPLES[kind])) for path in pictures]


def draw_outfits(items: Mapping[str, Sequence[Item]], count: int, seed: int) -> list[Outfit]:
    """Different outfits; those with a dress as often as dresses are among dresses and upper garments.

    Raises:
        EvaluationError: there are not so many.
    """
    dresses = round(count * len(items["dress"]) / (len(items["dress"]) + len(items["upper"])))
    bag = ["bag"] if "bag" in items else []
    drawn = [
        *_combinations(items, ["face", "upper", "lower", *bag], count - dresses, seed),
        *_combinations(items, ["face", "dress", *bag], dresses, seed),
    ]
    return shuffled(drawn, seed, "order")


def _combinations(items: Mapping[str, Sequence[Item]], kinds: Sequence[str], count: int, seed: int) -> list[Outfit]:
    """Different ones with each item about equally often: a pile of every kind is dealt out, shuffled and dealt again."""
    most = 1
    for kind in kinds:
        most *= len(items[kind])
    if count > most:
        raise EvaluationError(
            f"{count} different pairs of {' + '.join(kinds)} are wanted, there are {most}; lower --pairs"
        )
    piles = [_pile(items[kind], seed, f"{kind} for {len(kinds)}") for kind in kinds]
    found: dict[Outfit, None] = {}
    while len(found) < count:
        found.setdefault(tuple(next(pile) for pile in piles))
    return list(found)


def _pile(items: Sequence[Item], seed: int, what: str) -> Iterator[Item]:
    by_name = {item.path.name: item for item in items}
    rounds = 0
    while True:
        for name in shuffled(by_name, seed, f"{what}, round {rounds}"):
            yield by_name[name]
        rounds += 1


def scene_prompt(scene: str, outfit: Outfit) -> str:
    """The prompt of an outfit in a scene."""
    words = {item.kind: item.words.rstrip(".") for item in outfit}
    worn = [words[kind] for kind in ("upper", "lower", "dress") if kind in words]
    carried = f", carrying {words['bag']}" if "bag" in words else ""
    return scene.format(who=words["face"], wears=" and ".join(worn), carries=carried)


def _subject(item: Item, gallery: Gallery) -> CaseSubject:
    reference = gallery.add(item.path, f"references/{item.kind}/{item.path.stem}")
    return CaseSubject(item.kind, item.words.rstrip("."), CATEGORIES[item.kind], (reference,))
