"""How many people a prompt speaks of: "a man and two children" is 3; "a crowd" or "children" does not say."""

from __future__ import annotations

import re
from functools import lru_cache

_NUMBERS = {
    **{"a": 1, "an": 1, "one": 1, "another": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6},
    **{"seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
_DEFINITE = ("the", "his", "her", "their", "its", "both", "each")
_SETS = {"couple": 2, "pair": 2, "duo": 2, "twins": 2, "trio": 3, "quartet": 4}
_UNCOUNTED = re.compile(
    r"\b(crowds?|groups?|teams?|famil(?:y|ies)|several|many|some|audience|choir|troupe|spectators)\b"
)

# Nouns that say no more than "people", so that what follows them may describe the same people.
_GENERIC = ("individual", "figure", "friend", "human", "adult", "partner", "performer", "player", "athlete", "sibling")
_OTHERS = (
    *("boy", "girl", "kid", "toddler", "teenager", "teen", "guy", "senior", "elder", "youth", "infant"),
    *(
        "grandmother",
        "grandfather",
        "mother",
        "father",
        "parent",
        "daughter",
        "son",
        "brother",
        "sister",
        "bride",
        "groom",
    ),
    *(
        "husband",
        "student",
        "teacher",
        "doctor",
        "nurse",
        "worker",
        "soldier",
        "knight",
        "wizard",
        "warrior",
        "officer",
    ),
    *(
        "actor",
        "musician",
        "waiter",
        "king",
        "queen",
        "prince",
        "monk",
        "gymnast",
        "acrobat",
        "chef",
        "cook",
        "astronaut",
    ),
    *("ballerina", "artist", "clown", "stranger", "opponent", "patient", "customer", "guitarist", "cyclist", "rider"),
    *(
        "dancer",
        "runner",
        "fighter",
        "climber",
        "swimmer",
        "fencer",
        "wrestler",
        "skater",
        "singer",
        "painter",
        "juggler",
    ),
    *(
        "farmer",
        "golfer",
        "surfer",
        "boxer",
        "hiker",
        "jumper",
        "rower",
        "drummer",
        "archer",
        "carpenter",
        "firefighter",
    ),
    *("dad", "daddy", "mom", "mum", "mommy", "grandpa", "granddad", "grandma", "granny", "grandson", "granddaughter"),
    *(
        "uncle",
        "aunt",
        "cousin",
        "boyfriend",
        "girlfriend",
        "coach",
        "comrade",
        "biker",
        "cowboy",
        "model",
        "bodyguard",
    ),
    *(
        "lecturer",
        "professor",
        "photographer",
        "hairdresser",
        "barber",
        "physician",
        "paediatrician",
        "masseur",
        "driver",
    ),
    *("mechanic", "detective", "librarian", "pupil", "schoolgirl", "schoolboy", "skateboarder", "sprinter", "trainer"),
    *("colleague", "neighbour", "neighbor", "teammate", "rival", "pirate", "robber", "judge", "pilot", "bodybuilder"),
)
# singular -> plural, where it is not the singular with an s
_IRREGULAR = {
    **{"person": "people", "man": "men", "woman": "women", "child": "children", "baby": "babies", "lady": "ladies"},
    **{
        "gentleman": "gentlemen",
        "wife": "wives",
        "waitress": "waitresses",
        "actress": "actresses",
        "princess": "princesses",
    },
    **{"policeman": "policemen", "fireman": "firemen", "businessman": "businessmen", "businesswoman": "businesswomen"},
    **{"coach": "coaches", "someone": "persons", "somebody": "persons"},
}
_SINGULAR_OF = {f"{noun}s": noun for noun in (*_GENERIC, *_OTHERS)} | {
    plural: noun for noun, plural in _IRREGULAR.items()
}
_SINGULARS = {*_GENERIC, *_OTHERS, *_IRREGULAR}


def _any_of(words) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NOUN = rf"(?:{_any_of({*_SINGULARS, *_SINGULAR_OF, *_SETS})})\b"
_COUNT = rf"(?:\d{{1,9}}|{_any_of([*_NUMBERS, *_DEFINITE])})\b"
_WORD = r"[\w'-]{1,40}"  # an end, because a place in a longer one is looked at again from each of its letters
_LINKS = r"(?:and|or|of|to|with|at|on|in|by|from|for|over|as|while|who|that|is|are|facing|holding)\b"
_DOING = re.compile(r"\w{2}ing\b")
_CLAUSE = re.compile(r"[,;:(–—]|\s-\s")


@lru_cache(maxsize=1)
def _phrase() -> re.Pattern[str]:
    """A mention of people. Compiled when a prompt is first read: it takes a tenth of a second, which no start should pay."""
    return re.compile(
        rf"(?:\b(?P<count>{_COUNT})\s+)?(?:(?!{_COUNT}|{_NOUN}|{_LINKS}){_WORD}\s+){{0,3}}?\b(?P<noun>{_NOUN})"
        rf"(?P<of>\s+of\s+(?:(?!{_NOUN}){_WORD}\s+){{0,2}}{_NOUN})?"
    )


def people_in_prompt(prompt: str) -> int | None:
    """The number of people in a prompt, or None where it does not say."""
    text = prompt.lower()
    if _UNCOUNTED.search(text):
        return None
    known: set[str] = set()
    counts: list[int] = []
    described = 0  # people whom the first clause calls nothing but people
    for clause in _CLAUSE.split(text):
        found = _count_clause(clause, known)
        if found is None:
            return None
        count, generic = found
        if counts and 0 < count <= described:
            continue  # "two people, a man and a woman" are two
        if not counts and generic:
            described = count
        counts.append(count)
    return sum(counts) or None


def first_person_noun(prompt: str) -> tuple[int, int] | None:
    """Where the first word for a person stands in a prompt, as the span of its characters; None without one."""
    found = re.search(rf"\b{_NOUN}", prompt, re.IGNORECASE)
    return found.span() if found else None


def _count_clause(clause: str, known: set[str]) -> tuple[int, bool] | None:
    """People in a clause, and whether it calls them only people; None for a plural without number. Adds to `known`."""
    total, generic, end = 0, True, -2
    for phrase in _phrase().finditer(clause):
        word, count = phrase["noun"], phrase["count"]
        if end < 0 and _DOING.search(clause[: phrase.start()]):
            return None  # "kneading a woman's neck" does not say who does
        compound, end = phrase.start() == end + 1, phrase.end()
        if compound and count is None:
            continue  # "a teenage skater girl"
        noun = word if word in _SINGULARS else _SINGULAR_OF.get(word, word)
        again, known_now = noun in known, count in _DEFINITE
        known.add(noun)
        generic = generic and (noun in _SETS or noun in (*_GENERIC, "person"))
        if noun in _SETS:
            total += _SETS[noun]
        elif count is not None and not known_now:
            total += int(count) if count.isdigit() else _NUMBERS[count]
        elif again:
            continue  # "the man", whom we know
        elif word in _SINGULARS:
            total += 1
        else:
            return None
    return total, generic
