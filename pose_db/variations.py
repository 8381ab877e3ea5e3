"""Variations of an authored action: a prompt drawn along the axes, and the changes of pose and camera that it names.

Every axis either changes the pose as its words say or, like the environment, says nothing about the body. Prompt and pose are
drawn from generators of their own, so an entry depends on nothing but the seed, its action and its number.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .actions import Action, swap_sides
from .skeleton import ANGLE_INDEX, ANGLES, SIDES, body_lengths, forward
from .variation_axes import BUILD, GROUP_POOLS, GROUPS, MANNERS, NAMES_HEAD, SHOTS, SUBJECT_POOLS, Manner, Shot, Subject

VARIATIONS = 30  # per action

# How far ahead each part must look, as the cosine of its angle to straight ahead.
_FACING = {"pelvis": 0.7, "chest": 0.55, "head": 0.6}
_CANVASES = {
    "tall": ((768, 1024), (768, 1024), (832, 1216), (1024, 1024)),
    "square": ((1024, 1024), (1024, 1024), (896, 1152), (1152, 896)),
    "wide": ((1024, 768), (1024, 768), (1216, 832), (1024, 1024)),
    "any": ((768, 1024), (1024, 1024), (1024, 768)),
}


@dataclass(frozen=True)
class Variation:
    """One entry before its pose is made.

    Attributes:
        number: counted from 0 within its action.
        prompt: the text.
        subjects: one a person.
        manner: None where the prompt names none.
        place: the environment, or empty.
        shot: the camera's words.
        mirrored: whether left and right change places, in words and pose.
    """

    number: int
    prompt: str
    subjects: tuple[Subject, ...]
    manner: Manner | None
    place: str
    shot: Shot
    mirrored: bool


def generator(seed: int, action: str, number: int) -> np.random.Generator:
    """Random numbers that depend on nothing but seed, action and variation: entries can be made in any order."""
    return np.random.default_rng([seed, zlib.crc32(action.encode()), number])


def choose_variations(action: Action, seed: int, count: int = VARIATIONS) -> list[Variation]:
    """The first ``count`` variations of an action, all with different prompts."""
    chosen: list[Variation] = []
    prompts: set[str] = set()
    for number in range(count):
        rng = generator(seed, action.id, number)
        variation = _draw(action, number, rng)
        while variation.prompt in prompts:
            variation = _draw(action, number, rng)
        prompts.add(variation.prompt)
        chosen.append(variation)
    return chosen


def _draw(action: Action, number: int, rng: np.random.Generator) -> Variation:
    """One variation; the first of an action is its plain prompt with nothing but the subject."""
    plain = number == 0
    phrase = action.say[number % len(action.say)]
    subjects, names = _draw_subjects(action, rng)
    shot = SHOTS[0] if plain or rng.random() < 0.45 else _pick(rng, _fitting_shots(action))
    # "cuddling on a sofa on a sofa": a phrasing may name its place already.
    places = [place for place in action.places if place.split()[-1] not in phrase]
    place = "" if plain or not places or rng.random() < 0.5 else _pick(rng, places)
    manners = _fitting_manners(action, shot)
    manner = None if plain or not manners or rng.random() < 0.66 else _pick(rng, manners)
    mirrored = bool(rng.random() < 0.5) and not plain
    if mirrored:
        phrase = swap_sides(phrase)
    prompt = _sentence(phrase, names, manner, place, shot, rng)
    return Variation(number, prompt, subjects, manner, place, shot, mirrored)


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _draw_subjects(action: Action, rng: np.random.Generator) -> tuple[tuple[Subject, ...], list[str]]:
    """The people, and how the prompt names them: one name for all, or one each where they have different parts."""
    people = len(action.people)
    if people > 1 and not action.has_parts:
        groups = [g for pool in GROUP_POOLS[action.subjects[0]] for g in GROUPS[pool] if len(g[1]) == people]
        words, subjects = _pick(rng, groups)
        return subjects, [words]
    subjects = tuple(_pick(rng, SUBJECT_POOLS[pool]) for pool in action.subjects)
    names: list[str] = []
    for subject in subjects:
        words = subject.words
        if words in names:
            # "a woman ... another woman"; a third one alike is "a third woman".
            bare = words.split(" ", 1)[1]
            words = f"another {bare}" if f"another {bare}" not in names else f"a third {bare}"
        names.append(words)
    return subjects, names


def _fitting_shots(action: Action) -> list[Shot]:
    turned = not _all_face_front(action)
    return [
        shot
        for shot in SHOTS[1:]
        if shot.group in action.cameras
        and (shot.crop in (None, "full", "wide") or shot.crop in action.crops)
        and not (turned and shot.azimuth is not None)
    ]


def _all_face_front(action: Action) -> bool:
    """Whether pelvis, chest and head of everybody look ahead, so that "from behind" and "from the left side" mean one thing."""
    lengths = body_lengths("person")[None]
    frames = [forward(person.angles[None], lengths).frames for person in action.people]
    return all(frame[part][0, 2, 2] > least for frame in frames for part, least in _FACING.items())


def _fitting_manners(action: Action, shot: Shot) -> list[Manner]:
    person, *others = action.people
    if others:
        return [manner for manner in MANNERS if manner.before and not action.calm and not action.has_parts]
    angles = person.angles
    neck = [angles[ANGLE_INDEX[f"neck_{name}"]] for name in ("flexion", "tilt", "turn")]
    root = [angles[ANGLE_INDEX[f"root_{name}"]] for name in ("yaw", "pitch", "roll")]
    busy = any(reach.anchor in ("head", "nose") or reach.anchor.endswith("ear") for reach in person.reaches)
    told = any(word in text for text in action.say for word in NAMES_HEAD)
    twisted = angles[ANGLE_INDEX["trunk_twist"]]
    free = not (busy or told or any(neck) or twisted or np.abs(root).max() > 30 or shot.group == "behind")
    return [manner for manner in MANNERS if (free if manner.head else not action.calm)]


def _sentence(
    phrase: str, names: list[str], manner: Manner | None, place: str, shot: Shot, rng: np.random.Generator
) -> str:
    """The prompt, in one of a few orders of words."""
    for part, name in zip(("{b}", "{c}"), names[1:], strict=False):
        phrase = _name_part(phrase, part, name)
    with_verb = rng.random() < 0.4
    words = [names[0]]
    if with_verb:
        words.append("are" if names[0].startswith(("two", "three")) or " and " in names[0] else "is")
    if manner is not None and manner.before:
        words.append(manner.words)
    words.append(phrase)
    if manner is not None and not manner.before:
        words.append(manner.words)
    place_first = bool(place) and rng.random() < 0.2
    if place and not place_first:
        words.append(place)
    text = " ".join(words)
    if place_first:
        text = f"{place}, {text}"
    shot_first = not place_first and not with_verb and rng.random() < 0.5
    if shot_first and shot.words.endswith(("shot", "view", "portrait")):
        text = f"{shot.words} of {text}"
    elif shot.words:
        text = f"{text}, {shot.words}"
    return re.sub(r",(?=,|$)", "", text)


def _name_part(phrase: str, part: str, name: str) -> str:
    """The phrase with a person's name in it: "the seated {b}" has an article already."""
    bare = name.replace("another", "other", 1) if name.startswith("another") else name.split(" ", 1)[1]
    phrase = re.sub(rf"(\bthe \w+ ){re.escape(part)}", lambda match: match.group(1) + bare, phrase)
    return phrase.replace(part, name)


def perturbed_angles(action: Action, variation: Variation, rng: np.random.Generator) -> np.ndarray:
    """Joint angles of everybody in a variation, (P, 27) degrees, not yet held to the limits.

    Every joint is moved a little at random (people differ, and no two people wave alike), then by what manner and build say.
    """
    spread = np.array([_spread(name) for name in ANGLES])
    rows = []
    for person, subject in zip(action.people, variation.subjects, strict=True):
        angles = person.angles + spread * np.clip(rng.standard_normal(len(ANGLES)), -2, 2)
        added = dict(BUILD.get(subject.body, {}))
        if variation.manner is not None:
            added = _sum(added, _unmirrored(variation.manner.added, variation.mirrored))
            for side in SIDES:
                for name in ("shoulder_flexion", "shoulder_abduction"):
                    angles[ANGLE_INDEX[f"{side}_{name}"]] *= variation.manner.swing
        # Lying or upside down, the trunk rests on something and does not slump.
        upright = abs(angles[ANGLE_INDEX["root_pitch"]]) < 45 and abs(angles[ANGLE_INDEX["root_roll"]]) < 45
        for name, value in added.items():
            if upright or not name.startswith("trunk"):
                angles[ANGLE_INDEX[name]] += value
        rows.append(angles)
    return np.stack(rows)


def _spread(name: str) -> float:
    """Standard deviation in degrees of an angle's random part."""
    if name.startswith("root"):
        return 2.5 if name == "root_yaw" else 1.0
    if "hip" in name or "knee" in name:
        return 1.6
    return {"trunk": 1.8, "neck": 3.5}.get(name.split("_")[0], 1.5 if "shrug" in name else 3.5)


def _sum(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in (*first, *second)}


def _unmirrored(added: Mapping[str, float], mirrored: bool) -> Mapping[str, float]:
    """Side-to-side angles turned around where the scene will be mirrored afterwards, so that they end up as the words say."""
    if not mirrored:
        return added
    return {name: -value if name in ("neck_turn", "neck_tilt") else value for name, value in added.items()}


@dataclass(frozen=True)
class Camera:
    """One variation's row of ``camera.View``: degrees, metres, a crop, pixels and a share of the canvas."""

    azimuth: float
    elevation: float
    distance: float
    crop: str
    canvas: tuple[int, int]
    margin: float


def draw_camera(action: Action, variation: Variation, rng: np.random.Generator) -> Camera:
    """A camera that does what the prompt says of it, and otherwise shows the action well."""
    shot = variation.shot
    azimuth, elevation = shot.azimuth or action.view, shot.elevation or action.tilt
    turned = azimuth[0] + azimuth[1] * rng.uniform(-1, 1)
    # The action's own view is of the authored scene; words such as "from the left side" hold for the mirrored one too.
    if (shot.azimuth is None and variation.mirrored) or (shot.words == "three-quarter view" and rng.random() < 0.5):
        turned = -turned
    crop = shot.crop or ("full" if shot.words or rng.random() < 0.8 else _pick(rng, action.crops))
    shape = action.canvas if crop in ("full", "wide") else ("square" if len(action.people) == 1 else "wide")
    return Camera(
        azimuth=turned,
        elevation=elevation[0] + elevation[1] * rng.uniform(-1, 1),
        distance=(3.6 + 1.1 * len(action.people)) * rng.uniform(0.9, 1.4),
        crop=crop,
        canvas=_pick(rng, _CANVASES[shape]),
        margin=rng.uniform(0.05, 0.12),
    )


def sized(subject: Subject, rng: np.random.Generator) -> Subject:
    """The subject with a stature of its own, three percent around the usual."""
    return replace(subject, stature=subject.stature * (1 + 0.03 * float(np.clip(rng.standard_normal(), -2, 2))))
