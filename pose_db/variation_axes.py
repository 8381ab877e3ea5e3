"""The words of the prompt axes and what each of them does to body, pose or camera.

Who (age, sex, build), how (manner, where the head looks) and from where it is seen (side, height, crop). ``variations`` draws
from these; where something happens (the environment) stands with each action and says nothing about the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """One person as words and as a body.

    Attributes:
        words: with an article, ``an elderly woman``.
        body: key of ``skeleton.BODIES``.
        stature: factor on that body's height.
        attributes: age, sex and build as they go into the tags.
    """

    words: str
    body: str
    attributes: str
    stature: float = 1.0


_MEN = (
    Subject("a man", "man", "adult man"),
    Subject("a young man", "man", "young adult man"),
    Subject("a tall man", "tall", "adult man, tall"),
    Subject("a heavyset man", "heavy", "adult man, heavyset", 1.03),
    Subject("a muscular man", "muscular", "adult man, muscular"),
)
_WOMEN = (
    Subject("a woman", "woman", "adult woman"),
    Subject("a young woman", "woman", "young adult woman"),
    Subject("a short woman", "short", "adult woman, short"),
    Subject("a slim woman", "slim", "adult woman, slim", 0.97),
    Subject("a heavyset woman", "heavy", "adult woman, heavyset", 0.95),
)
_ELDERLY = (
    Subject("an elderly man", "elderly", "elderly man", 1.03),
    Subject("an elderly woman", "elderly", "elderly woman", 0.95),
)
_CHILDREN = (
    Subject("a boy", "child", "child, boy"),
    Subject("a girl", "child", "child, girl", 0.99),
    Subject("a child", "child", "child"),
    Subject("a little girl", "child", "child, girl", 0.9),
)
_TODDLERS = (Subject("a toddler", "toddler", "toddler"),)
_TEENAGERS = (
    Subject("a teenage boy", "teenager", "teenager, boy", 1.03),
    Subject("a teenage girl", "teenager", "teenager, girl", 0.99),
)
_ANYBODY = (Subject("a person", "person", "adult"),)
_ATHLETES = (
    Subject("an athletic man", "man", "adult man, athletic", 1.01),
    Subject("an athletic woman", "woman", "adult woman, athletic", 1.02),
)
SUBJECT_POOLS: Mapping[str, tuple[Subject, ...]] = {
    "any": _ANYBODY + _MEN + _WOMEN + _ELDERLY + _CHILDREN[:3] + _TEENAGERS,
    "adult": _ANYBODY + _MEN + _WOMEN + _ELDERLY,
    "young": _ANYBODY + _MEN[:3] + _WOMEN[:2] + _CHILDREN[:2] + _TEENAGERS + _ATHLETES,
    "athlete": _ANYBODY + _MEN[:2] + _WOMEN[:2] + _ATHLETES + _MEN[4:] + _TEENAGERS,
    "child": _CHILDREN,
    "toddler": _TODDLERS,
    "man": _MEN + _ELDERLY[:1],
    "woman": _WOMEN + _ELDERLY[1:],
}

_M, _W, _P = _MEN[0], _WOMEN[0], _ANYBODY[0]
_BOY, _GIRL, _KID = _CHILDREN[:3]
# Words for a whole group of two or three, by pool: every name says how many people there are.
GROUPS: Mapping[str, tuple[tuple[str, tuple[Subject, ...]], ...]] = {
    "grown": (
        ("two people", (_P, _P)),
        ("two men", (_M, _M)),
        ("two women", (_W, _W)),
        ("a man and a woman", (_M, _W)),
        ("a woman and a man", (_W, _M)),
        ("two friends", (_P, _P)),
        ("a couple", (_M, _W)),
        ("two young women", (_WOMEN[1], _WOMEN[1])),
        ("two young men", (_MEN[1], _MEN[1])),
        ("two colleagues", (_P, _P)),
        ("three people", (_P, _P, _P)),
        ("three men", (_M, _M, _M)),
        ("three women", (_W, _W, _W)),
        ("three friends", (_P, _P, _P)),
        ("two men and a woman", (_M, _M, _W)),
        ("two women and a man", (_W, _W, _M)),
        ("three young women", (_WOMEN[1],) * 3),
        ("three young men", (_MEN[1],) * 3),
        ("a man, a woman and another man", (_M, _W, _M)),
        ("a woman, a man and another woman", (_W, _M, _W)),
    ),
    "old": (
        ("an elderly couple", _ELDERLY),
        ("two elderly men", _ELDERLY[:1] * 2),
        ("two elderly women", _ELDERLY[1:] * 2),
        ("three elderly women", _ELDERLY[1:] * 3),
        ("three elderly men", _ELDERLY[:1] * 3),
    ),
    "kids": (
        ("two children", (_KID, _KID)),
        ("two boys", (_BOY, _BOY)),
        ("two girls", (_GIRL, _GIRL)),
        ("a boy and a girl", (_BOY, _GIRL)),
        ("three children", (_KID, _KID, _KID)),
        ("three girls", (_GIRL, _GIRL, _GIRL)),
        ("three boys", (_BOY, _BOY, _BOY)),
        ("two girls and a boy", (_GIRL, _GIRL, _BOY)),
    ),
    "teens": (
        ("two teenage girls", _TEENAGERS[1:] * 2),
        ("two teenage boys", _TEENAGERS[:1] * 2),
        ("three teenage boys", _TEENAGERS[:1] * 3),
        ("three teenage girls", _TEENAGERS[1:] * 3),
    ),
    "fit": (
        ("two athletes", (_ATHLETES[0], _ATHLETES[0])),
        ("two sportswomen", (_ATHLETES[1], _ATHLETES[1])),
        ("three athletes", (_ATHLETES[0],) * 3),
        ("three sportswomen", (_ATHLETES[1],) * 3),
    ),
}
GROUP_POOLS = {
    "any": ("grown", "old", "kids", "teens"),
    "adult": ("grown", "old"),
    "young": ("grown", "kids", "teens"),
    "athlete": ("grown", "fit", "teens"),
}


@dataclass(frozen=True)
class Manner:
    """How something is done.

    Attributes:
        words: an adverb before the verb, or a phrase after it.
        before: whether the words stand before the verb.
        added: degrees added to angles (``neck_flexion``), for everybody.
        swing: factor on how far the arms are from hanging down.
        head: whether it says where the head points, so that it fits only where the head is free.
    """

    words: str
    before: bool
    added: Mapping[str, float]
    swing: float = 1.0
    head: bool = False


MANNERS = (
    Manner("energetically", True, {"trunk_flexion": 3, "neck_flexion": -5}, 1.07),
    Manner("lazily", True, {"trunk_flexion": 7, "neck_flexion": 8}, 0.93),
    Manner("tiredly", True, {"trunk_flexion": 10, "neck_flexion": 14, "left_shrug": -3, "right_shrug": -3}, 0.94),
    Manner("proudly", True, {"trunk_flexion": -6, "neck_flexion": -6}),
    Manner("shyly", True, {"trunk_flexion": 4, "neck_flexion": 14, "left_shrug": 6, "right_shrug": 6}, 0.95),
    Manner("calmly", True, {}),
    Manner("stiffly", True, {"trunk_flexion": -3}),
    Manner("nervously", True, {"trunk_flexion": 3, "left_shrug": 9, "right_shrug": 9, "neck_flexion": 4}),
    Manner("cheerfully", True, {"trunk_flexion": -3, "neck_flexion": -7, "neck_tilt": 6}, 1.03),
    Manner("while looking down", False, {"neck_flexion": 30}, head=True),
    Manner("while looking up", False, {"neck_flexion": -30}, head=True),
    Manner("while looking to the left", False, {"neck_turn": 50}, head=True),
    Manner("while looking to the right", False, {"neck_turn": -50}, head=True),
    Manner("with the head tilted to the left", False, {"neck_tilt": 22}, head=True),
    Manner("with the head tilted to the right", False, {"neck_tilt": -22}, head=True),
)
# How age and build show in the posture itself, degrees added to the angles of a limb that is given by angles.
BUILD = {
    "elderly": {"trunk_flexion": 9, "neck_flexion": -4},
    "heavy": {"left_shoulder_abduction": 5, "right_shoulder_abduction": 5, "trunk_flexion": -2},
    "muscular": {"left_shoulder_abduction": 5, "right_shoulder_abduction": 5},
    "slim": {},
}
NAMES_HEAD = ("head", "look", "face", "glanc", "gaz", "star", "eye", "chin", "neck", "read", "watch")


@dataclass(frozen=True)
class Shot:
    """What the prompt says about the camera, and what the camera does.

    Attributes:
        words: as they stand in the prompt; empty where the prompt says nothing.
        group: which of an action's ``cameras`` it needs; empty for none.
        azimuth: middle and half width in degrees, or None for the action's own.
        elevation: the same.
        crop: a crop of ``actions.CROPS``, or None for one that suits the action.
    """

    words: str
    group: str = ""
    azimuth: tuple[float, float] | None = None
    elevation: tuple[float, float] | None = None
    crop: str | None = None


SHOTS = (
    Shot(""),
    Shot("seen from the front", "around", (0, 8), None),
    Shot("front view", "around", (0, 8), None),
    Shot("three-quarter view", "around", (40, 10), None),
    Shot("seen from behind", "behind", (180, 12), (4, 5)),
    Shot("back view", "behind", (180, 12), (4, 5)),
    Shot("seen from the left side", "side", (90, 8), (4, 5)),
    Shot("seen from the right side", "side", (-90, 8), (4, 5)),
    Shot("low angle shot", "height", None, (-14, 5)),
    Shot("high angle shot", "height", None, (34, 6)),
    Shot("seen from above", "height", None, (48, 5)),
    Shot("full body shot", "crop", None, None, "full"),
    Shot("full body, seen from behind", "behind", (180, 12), (4, 5), "full"),
    Shot("wide shot", "crop", None, None, "wide"),
    Shot("shown from the knees up", "crop", None, None, "knees"),
    Shot("shown from the waist up", "crop", None, None, "waist"),
    Shot("waist-up portrait", "crop", None, None, "waist"),
)
