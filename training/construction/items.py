"""What of a description becomes a subject: phrases and detected objects, told apart, merged, each with its words in the caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...pose_db.keypoints import KEYPOINT_INDEX
from .boxes import Box, area, clipped, inside, overlap
from .described import Described
from .phrases import FACE, PERSON, category_of, is_several

SAME_THING = 0.7  # overlap of two boxes of one category that mean one thing
SAME_OBJECT = 0.5  # of a detected object's box with a phrase's, whose words then say more
WITHIN = 0.7  # share of a face's box in its person's
SURE = 0.3  # confidence from which on a keypoint of the head counts
# Lengths of an adult's head in millimetres; only their proportions matter.
EYES, EARS, NOSE_TO_NECK = 63.0, 150.0, 195.0
HALF_FACE, ABOVE_NOSE, BELOW_NOSE = 85.0, 150.0, 85.0


@dataclass(frozen=True)
class Item:
    """One thing in a picture.

    Attributes:
        words: as they stand in the caption.
        category: one of a cast's categories.
        box: in pixels of the picture.
        shared: whether the words stand for others in the picture too, such as "two dogs".
    """

    words: str
    category: str
    box: Box
    shared: bool = False


def find_items(described: Described, width: int, height: int, smallest: float) -> tuple[list[Item], list[str]]:
    """The items of a picture, phrases before detected objects, and why the others are none.

    Args:
        smallest: share of the picture's area that a box must have.
    """
    items: list[Item] = []
    refused: list[str] = []
    named = [phrase for phrase, _ in described.phrases]
    for phrase, box in described.phrases:
        several = is_several(phrase)
        if several and named.count(phrase) == 1:
            refused.append(f"'{phrase}' are several in one box")
            continue
        words = words_in(phrase, described.caption)
        _add(items, refused, phrase, words, category_of(phrase), box, several or named.count(phrase) > 1)
    items = _checked(items, refused, width, height, smallest)
    for label, box in described.objects:
        category = category_of(label)
        if any(item.category == category and overlap(item.box, box) > SAME_OBJECT for item in items):
            continue
        words = _person_around(items, box) if category == FACE else words_in(label, described.caption)
        _add(items, refused, label, words, category, box, False)
    return _checked(items, refused, width, height, smallest), refused


def _add(
    items: list[Item], refused: list[str], phrase: str, words: str | None, category: str | None, box: Box, shared: bool
) -> None:
    if category is None:
        return
    if words is None:
        refused.append(f"'{phrase}' does not stand in the caption")
    else:
        items.append(Item(words, category, box, shared))


def _person_around(items: Sequence[Item], box: Box) -> str | None:
    """The words of the smallest person whose box holds this one."""
    around = [item for item in items if item.category == PERSON and inside(box, item.box) >= WITHIN]
    return min(around, key=lambda item: area(item.box)).words if around else None


def _checked(items: Sequence[Item], refused: list[str], width: int, height: int, smallest: float) -> list[Item]:
    """Without boxes that are too small, and with one item for what two phrases stand for: the one with more words."""
    kept: dict[int, Item] = {}
    for place in sorted(range(len(items)), key=lambda place: -len(items[place].words)):
        item = items[place]
        box = clipped(item.box, width, height)
        if box is None or area(box) < smallest * width * height:
            refused.append(f"'{item.words}' is too small")
        elif not any(
            other.category == item.category and overlap(other.box, box) > SAME_THING for other in kept.values()
        ):
            kept[place] = replace(item, box=box)
    return [kept[place] for place in sorted(kept)]


def words_in(phrase: str, caption: str) -> str | None:
    """A phrase as it stands in the caption; None where it does not.

    Capitals and spaces do not matter, nor do letters beyond ASCII, which some parsers drop.
    """
    for plain in (_folded, _ascii):
        text, places = plain(caption)
        wanted = plain(phrase)[0].strip()
        start = _word_place(text, wanted)
        if wanted and start >= 0:
            return caption[places[start] : places[start + len(wanted) - 1] + 1]
    return None


def _word_place(text: str, wanted: str) -> int:
    """Where `wanted` stands in `text` as whole words; -1 where it does not."""
    start = text.find(wanted)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(wanted) : start + len(wanted) + 1]
        if not before.isalnum() and not after.isalnum():
            return start
        start = text.find(wanted, start + 1)
    return -1


def _folded(text: str) -> tuple[str, list[int]]:
    """Lower case with single spaces, and the place in `text` of every character."""
    letters, places = [], []
    for place, letter in enumerate(text):
        if letter.isspace():
            if not letters or letters[-1] == " ":
                continue
            letter = " "
        for folded in letter.lower():
            letters.append(folded)
            places.append(place)
    return "".join(letters), places


def _ascii(text: str) -> tuple[str, list[int]]:
    kept = [(letter, place) for letter, place in zip(*_folded(text), strict=True) if letter.isascii()]
    return "".join(letter for letter, _ in kept), [place for _, place in kept]


# Faces


def face_box(person: np.ndarray, width: int, height: int) -> Box | None:
    """The face of a person (18, 3) in pixels and confidence; None where it is not seen.

    It needs the nose and an eye: the back of a head has neither.
    """
    seen = {name: person[place, :2] for name, place in KEYPOINT_INDEX.items() if person[place, 2] >= SURE}
    eyes = [seen[name] for name in ("right_eye", "left_eye") if name in seen]
    if "nose" not in seen or not eyes:
        return None
    unit = max(_distances(seen), default=0.0)  # pixels a millimetre: turning the head only shortens distances
    if unit <= 0:
        return None
    nose = seen["nose"]
    across = np.mean([nose, *eyes, *(seen[name] for name in ("right_ear", "left_ear") if name in seen)], axis=0)[0]
    left, right = across - HALF_FACE * unit, across + HALF_FACE * unit
    return clipped((left, nose[1] - ABOVE_NOSE * unit, right, nose[1] + BELOW_NOSE * unit), width, height)


def _distances(seen: dict[str, np.ndarray]) -> list[float]:
    """Of pairs of keypoints of the head that are seen, in pixels a millimetre."""
    known = (("right_eye", "left_eye", EYES), ("right_ear", "left_ear", EARS), ("nose", "neck", NOSE_TO_NECK))
    return [
        float(np.linalg.norm(seen[one] - seen[other])) / length
        for one, other, length in known
        if {one, other} <= seen.keys()
    ]


def with_faces(
    items: Sequence[Item], people: np.ndarray, owners: Sequence[int | None], width: int, height: int, smallest: float
) -> list[Item]:
    """The items and a face for every person that has none yet, called by the person's words.

    Args:
        people: (P, 18, 3).
        owners: for every item, whose of the people it is.
    """
    result = list(items)
    for item, owner in zip(items, owners, strict=True):
        if item.category != PERSON or owner is None:
            continue
        box = face_box(people[owner], width, height)
        if box is None or area(box) < smallest * width * height:
            continue
        if not any(other.category == FACE and overlap(other.box, box) > 0.2 for other in result):
            result.append(Item(item.words, FACE, box, item.shared))
    return result
