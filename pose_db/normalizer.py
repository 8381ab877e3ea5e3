"""Prompt -> query: leaves out of a prompt what does not shape a pose (ASTRA, section 3.1: the normalised query).

Kept: what the people do, how many and what kind of people they are, their build, how they touch or face each other, the
manner, the place, camera and crop. Left out: style, medium, quality words, lighting, lens and film, colours, worn
clothes, hair and face, names, and prompt syntax such as ``(word:1.2)``, LoRA and embedding tags.

There are two ways. `normalize_by_rules` needs nothing but the word lists in ``data/normalizer_words.json``. A language
model does it
better: `instruction` is what it is asked and `parse_answer` reads what it said, or says that it cannot be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

WORDS_FILE = Path(__file__).parent / "data" / "normalizer_words.json"
MAX_ANSWER_WORDS = 60

_NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}
_DETERMINERS = "a|an|the|his|her|their|its|my|our|your|some"
# Words that alone say nothing about a pose: what is left of a clause whose content was taken out.
_FUNCTION_WORDS = frozenset(
    f"{_DETERMINERS}|and|or|of|in|on|at|with|by|to|for|from|as|is|are|very|style|lighting|lit|light|made|set|against|under|during|"
    "inspired|render|shot|taken|using|captured|background|quality|detailed|details|detail|fine|high|low|ultra|hyper|super|extremely|"
    "mood|lens|camera|film|wearing|dressed|matching|color|colour|colors|colours|solo|subject".split("|")
)


def normalize_by_rules(prompt: str) -> str:
    """The part of `prompt` that shapes a pose, in lower case; the bare words where the rules would leave nothing."""
    plain = strip_markup(prompt)
    text = _replace_names(_without_credits(plain)).lower()
    clauses = [_clean_clause(clause) for clause in re.split(r"[,;|\n]+|[.!?]+(?:\s|$)", text)]
    clauses = [clause for clause in clauses if clause]
    # The first clause names the subject; a later one that speaks of no body, person, action or camera is scenery.
    kept = [clause for number, clause in enumerate(clauses) if number == 0 or _shapes_a_pose(clause)]
    return ", ".join(kept) or plain.lower()


def strip_markup(prompt: str) -> str:
    """`prompt` without weights, LoRA and embedding tags, generation parameters and other syntax; the words stay."""
    text = re.split(r"\b(?:negative prompt|steps)\s*:", prompt, maxsplit=1, flags=re.IGNORECASE)[0]
    text = re.sub(r"<[^<>]*>", " ", text)
    text = re.sub(r"\bembedding:[\w./-]+", " ", text)
    text = re.sub(r"(?:^|\s)--?[a-z]\w*(?:\s+[\d.:]+)?", " ", text)  # --ar 16:9
    text = re.sub(r"https?://\S+|__\w+__|#", " ", text)
    text = re.sub(r"\b(?:BREAK|AND|ADDCOMM)\b", ",", text)
    text = text.replace("\\(", "(").replace("\\)", ")")
    text = re.sub(r":\s*-?\d*\.?\d+(?=\s*[)\]}])", "", text)
    text = re.sub(r"[()\[\]{}*\"“”]", " ", text)
    text = re.sub(r"(?<=\w)_+(?=\w)", " ", text)
    return re.sub(r"[ \t]+", " ", text).strip(" ,")


def instruction(prompt: str) -> str:
    """What a language model of the Qwen2.5-1.5B-Instruct class is asked, examples included."""
    return f"{_INSTRUCTION}\n\nPrompt: {strip_markup(prompt)}\nAnswer:"


def parse_answer(answer: str, prompt: str) -> str | None:
    """The query in a language model's answer, or None where it is empty, too long, gibberish or not about `prompt`."""
    text = re.sub(r"<think>.*?(?:</think>|$)", " ", answer, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"```\w*", " ", text).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    query = re.sub(
        r"^(?:\W*(?:answer|query|pose|output|rewritten prompt|sentence)\s*:)+", "", lines[0], flags=re.IGNORECASE
    )
    query = re.sub(r"\s+", " ", query).strip(" \"'`*-.")
    words = _content_words(query)
    if not words or len(query.split()) > MAX_ANSWER_WORDS:
        return None
    # A sentence about the prompt reuses its words; half of them leaves room for synonyms.
    known = {word[:4] for word in _content_words(strip_markup(prompt))} | _PEOPLE
    return query if sum(word[:4] in known for word in words) * 2 >= len(words) else None


_INSTRUCTION = """\
Rewrite the picture prompt as one short sentence that says only what shapes the pose of the people in it.
Keep: what each person does, how many people there are, who they are (man, woman, child, old, tall, heavy), what they
hold or sit on, how they touch or face each other, the manner (slowly, angrily), the place, and the camera (from behind,
from the side, close-up, full body).
Leave out: style, medium, quality words, lighting, colours, clothes, hair, brands and names. Write "a woman" or "a man"
for a name. Do not add people or actions that are not there. Answer with that one sentence and nothing else.

Prompt: cinematic photo of my grandma Rose waving goodbye from the porch, golden hour, 85mm, bokeh
Answer: an old woman waving goodbye from the porch
Prompt: masterpiece, 2girls, blue kimono, (bowing:1.3) to each other, temple garden, cherry blossoms, from side
Answer: two girls bowing to each other in a garden, seen from the side
Prompt: oil painting of Tom in a red coat angrily pointing at a tall soldier, dramatic light
Answer: a man angrily pointing at a tall soldier"""

_PEOPLE = frozenset(
    word[:4] for word in ("person", "people", "man", "men", "woman", "women", "child", "seen", "someone")
)


def _content_words(text: str) -> list[str]:
    words = re.findall(r"[a-z][a-z'-]+", text.lower())
    return [word for word in words if word not in _FUNCTION_WORDS]


@cache
def _words() -> dict:
    return json.loads(WORDS_FILE.read_text(encoding="utf-8"))


def _any_of(words: Collection[str]) -> str:
    """Alternatives, longest first, so that "golden hour" is not read as "golden"."""
    return "|".join(
        re.escape(word).replace(r"\ ", r"[\s-]+") for word in sorted(words, key=lambda word: (-len(word), word))
    )


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """The rules, compiled once from the word lists."""
    words = _words()
    tags = words["quality"] + words["style"] + words["light"]
    anywhere = _any_of(set(tags) - set(words["only_as_tags"]))
    style, media, light = _any_of(tags), _any_of(words["media"]), _any_of(words["light"])
    colour, garment = _any_of(words["colours"]), _any_of(words["garments"])
    shade, glow = _any_of(words["light_modifiers"]), _any_of(words["light_nouns"])
    look, look_modifier = _any_of(words["looks"]), _any_of(words["look_modifiers"] + words["colours"])
    determiner = rf"(?:(?:{_DETERMINERS})\s+)?"
    # Up to four words before the garment, none of which starts something new ("wearing boots while dancing").
    adjective = r"(?:(?!(?:and|while|with|in|on|at|by|of|to|is|as|from|who|that)\b|\w+ing\b)[\w'-]+\s+)"
    plain = rf"{adjective}{{0,4}}?(?:{garment})\b(?!\s+of\b)"
    worn = rf"{determiner}{plain}"
    lit = (
        r"(?:at|in|during|under|with|by|against|through|(?:just\s+)?(?:before|after)"
        r"|(?:lit|illuminated)\s+(?:by|with)|bathed\s+in)"
    )
    more = rf"(?:\s*(?:and|with|over|under)\s+{worn})*"
    joint = "and|or|in|on|at|with|from|of|to|while|by|for|as|is|are|who"
    rules = {
        "lead": rf"^{determiner}(?:(?:{style}|{shade}|{colour}|very|highly|old|simple|rough|quick|detailed)[\s,-]+)*"
        rf"(?:{media})(?:\s+(?:style|photo|photograph|painting|drawing|shot|render))*"
        r"\s+(?:of|showing|depicting|featuring|with|that shows|where|portraying|capturing)\s+",
        "lens": r"\b(?:f\s?/\s?\d+(?:\.\d+)?|f\d\.\d|\d+(?:\.\d+)?\s?mm(?:\s+(?:lens|film))?"
        r"|iso\s?\d+|\d+k(?:\s+resolution)?|\d+p|1/\d+s?)\b",
        "lit": rf"\b{lit}\s+{determiner}(?:(?:{shade})\s+)*(?:{light})\b"
        rf"|\b(?:{lit}\s+{determiner})?(?:(?:{shade})\s+)+(?:{glow})\b",
        "wearing": rf"\b(?:wearing|sporting|(?:dressed(?:\s+up)?|clad|decked\s+out|outfitted)\s+in)\s+{worn}{more}",
        # Not "in his coat": what is in somebody's coat is usually a hand.
        "in_garment": rf"\bin\s+(?:(?:a|an|the|matching)\s+)?(?!(?:{_DETERMINERS})\b){plain}{more}",
        "in_colour": rf"\b(?:all\s+)?(?:in|wearing|dressed in)\s+(?:{colour})\b(?=$|\s+(?:\w+ing|{joint})\b)",
        "with_looks": rf"\b(?:with|and)\s+{determiner}(?:(?:{look_modifier})\s+)+(?:{look})\b",
        "looks": rf"^(?:(?:{look_modifier})\s+)*(?:{look})$",
        "haired": rf"\b(?:(?:{look_modifier})[\s-]+)*\w+-(?:haired|eyed|skinned)\b"
        r"|\b(?:bearded|freckled|tattooed|tanned)\b",
        "anywhere": rf"\b(?:{anywhere})(?![\w])(?:\s+style\b)?",
        "clothes_tag": rf"^(?:matching\s+)?(?:{adjective}){{0,3}}(?:{garment})$",
        "tag": rf"^(?:(?:{style}|{media}|{shade}|{glow}|{colour}|{_any_of(_FUNCTION_WORDS)})[\s/&+-]*)+$",
        "colour": rf"\b(?:{colour})(?:\s+and\s+(?:{colour}))*\s+(?!(?:{joint})\b)(?=\w)",
    }
    return {name: re.compile(rule) for name, rule in rules.items()}


@cache
def _occupations() -> dict[str, re.Pattern[str]]:
    """Kind of person -> the words for it that say nothing more about the body."""
    return {
        kind: re.compile(rf"\b(?P<my>(?:my|our|your)\s+)?(?:{_any_of(names)})(?P<many>s)?\b(?!['-])")
        for kind, names in _words()["occupations"].items()
    }


def _without_occupations(text: str) -> str:
    """Jobs, titles and family replaced by the kinds of people that the database knows: "my nurse" -> "a person"."""
    for kind, pattern in _occupations().items():
        text = pattern.sub(lambda match, kind=kind: _kind_for(match, kind), text)
    return re.sub(r"\ba(?= elderly)", "an", text)


def _kind_for(match: re.Match[str], kind: str) -> str:
    if match["many"]:
        return (
            re.sub(r"person$", "people", re.sub(r"man$", "men", kind)).replace("boy", "boys").replace("girl", "girls")
        )
    return f"a {kind}" if match["my"] else kind


_CLAUSE_RULES = (
    "lens",
    "lit",
    "wearing",
    "in_garment",
    "in_colour",
    "with_looks",
    "haired",
    "anywhere",
    "looks",
    "colour",
)


def _clean_clause(clause: str) -> str:
    """One lower-case clause without what does not shape a pose; empty where nothing else is in it."""
    rules = _patterns()
    text = _spelled_out(clause.strip())
    text = rules["lead"].sub("", text)
    if rules["tag"].match(text) or rules["clothes_tag"].match(text):
        return ""
    text = _without_occupations(text)
    for name in _CLAUSE_RULES:
        shorter = rules[name].sub(" ", text)
        text = _tidy(shorter) if shorter != text else text
    if rules["tag"].match(text) or not _content_words(text):
        return ""
    return re.sub(r"^(?:of|and|or)\s+|\s+(?=\s)", "", rules["lead"].sub("", text)).strip(" -:'/&")


def _shapes_a_pose(clause: str) -> bool:
    words = _words()
    idle = words["ing_words_without_action"]
    return any(
        word in words["pose_words"]
        or word in words["people_before_names"]
        or word.endswith("ly")
        or (word.endswith("ing") and word not in idle)
        for word in re.findall(r"[a-z'-]+", clause)
    )


def _spelled_out(text: str) -> str:
    """Booru counts in words: "2girls" -> "two girls"."""

    def words(match: re.Match[str]) -> str:
        return f"{_NUMBERS[match[1]]} {match[2]}"

    return re.sub(
        r"\b([1-6])\s?((?:girl|boy|man|woman|person|other|child|kid)s?|men|women|people|children)\b", words, text
    )


def _tidy(text: str) -> str:
    """Single spaces, no words left dangling at an end, "a" and "an" where they belong."""
    text = re.sub(r"\s+", " ", text).strip(" ,-:'/&")
    text = re.sub(
        r"(?:\s+|^)(?:and|or|of|in|with|by|at|on|the|a|an|against|wearing|under|during|as|very|is|are)$", "", text
    )
    text = re.sub(r"^(?:and|or|of|with|by|very)\s+", "", text)
    text = re.sub(r"\b(and|with|in|the|a|an)(?:\s+\1\b)+", r"\1", text)
    text = re.sub(r"\ba(?= [aeio]\w)", "a_n", text).replace("a_n", "an")
    text = re.sub(r"\ban(?= [bcdfgjklmnpqrstvwxyz])", "a", text)
    return text.strip(" ,-:")


def _without_credits(text: str) -> str:
    """`text` without the names of artists, makers and cameras."""
    name = r"(?:[A-Z][\w.'’-]*|and|&|de|van|von|the|da|di)"
    credit = (
        r"(?:(?:in\s+)?(?:the\s+)?styles?\s+of|(?:painted|drawn|directed|inspired|photographed)\s+by"
        r"|(?:art|photo|photography|illustration|work|render)\s+by)"
    )
    text = re.sub(rf"(?i:\b{credit})\s+[^,;.\n]+", " ", text)
    text = re.sub(r"(?i:\b(?:shot|taken|captured|filmed|photographed)\s+(?:on|with|using)\s+)[^,;.\n]+", " ", text)
    return re.sub(rf"\bby\s+[A-Z][\w.'’-]*(?:\s+{name})*", " ", text)


def _replace_names(text: str) -> str:
    """People's names become "a man" or "a woman", so that they still count; names of places go with their preposition."""
    capital = r"[A-Z][a-z'’]*[a-z](?:-[A-Z][a-z]+)?"
    before = r"(?P<before>(?:\b(?:[a-z][\w.]*|Mrs?\.?|Ms\.?|Dr\.?)\s+)?(?:the\s+)?)"
    return re.sub(rf"{before}(?P<name>{capital}(?:\s+{capital})*)(?![-\w])(?P<after>['’]s\b)?", _one_name, text)


def _one_name(match: re.Match[str]) -> str:
    words = _words()
    before, name, after = match["before"], match["name"], match["after"] or ""
    parts = name.lower().replace("’s", "").replace("'s", "").split()
    previous = before.lower().replace("the ", "").strip().strip(".")
    starts_clause = not re.search(r"[\w']\s+$", match.string[: match.start()] + before)
    sex = _sex_of(parts[0], starts_clause)
    if (
        previous in words["people_before_names"]
        and not starts_clause
        and (sex or parts[0] not in words["capitals_that_are_no_names"])
    ):
        return before.rstrip() + after
    if previous in ("named", "called") and not starts_clause:
        return after
    if parts[0] in words["people_before_names"]:
        return f"{before}{parts[0]}{after}"
    if sex is not None:
        return f"{before}a {sex}{after}"
    if starts_clause or any(part in words["capitals_that_are_no_names"] for part in parts):
        return match[0]
    return "" if previous in words["places_after"] else match[0]


def _sex_of(name: str, starts_clause: bool) -> str | None:
    """ "man" or "woman" for a known first name; one that is also a word counts only where its capital says so."""
    words = _words()
    if name in words["names_female"]:
        return "woman"
    if name in words["names_male"]:
        return "man"
    return None if starts_clause else words["names_that_are_words"].get(name)
