"""Item spans against what the host itself says about its tokens, on generated hard prompts and the real tokenizers.

The oracle of the generated prompts is the host's own weighting: every fragment is put into brackets with a weight of its
own, so the weight that comes back with a token tells which fragment it is from. The spans are found without weights.
"""

from __future__ import annotations

import random
import re
import unicodedata
from types import SimpleNamespace
from typing import Any

import comfy.sd
import pytest
import torch
from comfy import sd1_clip, sdxl_clip
from comfy.text_encoders.flux import KleinTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer

from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY, place_items, spans_of, token_ranges
from comfyui_ensemble.attention_patches.prompt_text import PromptError, read_prompt
from comfyui_ensemble.attention_patches.prompt_tokens import locate_tokens, text_lanes

PROMPTS = 100  # of each kind, for every text encoder
ENCODERS = ("flux_clip", "sdxl_clip", "clip")

DESCRIPTIONS = (
    "a woman in a red coat",
    "a man",
    "a man in a hat",
    "a tall man in a hat with a very long brown feather on it and boots of soft leather",
    "the knight's rusty armour",
    "an  unbelievably   juxtaposed\nwalrus",
    "naïve café owner, 63",
    "d'Artagnan",
    "红衣女人",
    "黑衣男人",
    "المرأة الجميلة",
    "빨간 코트를 입은 여자",
    "девушка в красном",
    "👩‍🚀 astronaut",
    "a girl 👧🏽",
    "ﬁne Ⅳ ½ lady",
    "a man \\(tall\\)",
    "e\u0301lan",
)
# None of these is a description, though some nearly are.
FILLERS = (
    "walks through the rain,",
    "a woman in a red",
    "dog hanger; a manual, a mankind",
    "a man0",
    "in a red coat: yes!",
    "the knights rusty armours",
    "红衣 女人",
    "女人走路",
    "—“quoted”… 12,345 #tags",
    "photo, 8k, f/1.4,",
    "المرأة",
    "👩 🚀 astronauts",
    "\n\n",
    "supercalifragilisticexpialidocious, antidisestablishmentarianism",
    "café owners",
    "elan",
)


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> comfy.sd.CLIP:
    return request.getfixturevalue(request.param)


def spans(clip: comfy.sd.CLIP, prompt: str, descriptions: dict[str, str], append=False) -> dict[str, Any]:
    lanes = text_lanes(clip)
    placed = place_items(prompt, descriptions, not lanes[0].tokenizer.disable_weights, append)
    tokens = [locate_tokens(clip, lane, placed.prompt, placed.readable) for lane in lanes]
    assert all(a.stop <= b.start for a, b in zip(placed.occurrences, placed.occurrences[1:], strict=False))
    return {
        name: [
            token_ranges(tokens, occurrence.start, occurrence.stop)
            for occurrence in placed.occurrences
            if occurrence.name == name
        ]
        for name in descriptions
    }


def indices(ranges: list[list[tuple[int, int]]]) -> list[int]:
    return [index for occurrence in ranges for start, stop in occurrence for index in range(start, stop)]


def lane_tokens(clip: comfy.sd.CLIP, prompt: str, **options: bool) -> list[tuple]:
    """All tokens of the lane that makes the text embeddings, in order; SDXL's two differ in their padding alone."""
    chunks = clip.tokenize(prompt, **options)
    return [token for chunk in chunks.get("t5xxl") or chunks.get("l") or chunks["minilm"] for token in chunk]


class Writer:
    """Writes prompts in which every bracket has a weight of its own, and remembers whose words it holds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cast = {
            f"name{number}": words
            for number, words in enumerate(self.random.sample(DESCRIPTIONS, self.random.randint(1, 4)))
        }
        self.owner: dict[float, str] = {}

    def bracket(self, text: str, owner: str) -> str:
        weight = 1.001 + len(self.owner) / 1000
        self.owner[weight] = owner
        return f"({text}:{weight})"

    def described(self, name: str) -> str:
        escaped = self.cast[name]
        form = self.random.randrange(5)
        if form == 0:
            return self.bracket(f"{{{name}}}", name)
        if form == 1 and " " in escaped:  # several brackets side by side
            middle = self.random.choice([match.end() for match in re.finditer(r"\s+", escaped)])
            return self.bracket(escaped[:middle], name) + self.bracket(escaped[middle:], name)
        if form == 2 and " " in escaped:  # brackets in brackets
            first, _, rest = escaped.partition(" ")
            return self.bracket(f"{self.bracket(first, name)} {rest}", name)
        if form == 3 and len(escaped[0].upper()) == 1:
            return self.bracket(escaped[:1].upper() + escaped[1:], name)
        return self.bracket(escaped, name)

    def prompt(self, fragments: int) -> str:
        out = []
        for name in self.cast:
            out += [self.described(name) for _ in range(self.random.choice((1, 1, 1, 2, 3)))]
        for _ in range(fragments):
            filler = self.random.choice(FILLERS)
            out.append(self.bracket(filler, "") if self.random.random() < 0.3 else filler)
        self.random.shuffle(out)
        return self.random.choice((" ", ", ", "; ", " \\( ", "\n")).join(out)


@pytest.mark.parametrize("length", ["short", "several chunks"])
def test_every_token_belongs_to_whom_its_weight_says(encoder, length):
    split = 0
    for seed in range(PROMPTS if length == "short" else 40):
        writer = Writer(seed)
        prompt = writer.prompt(writer.random.randint(0, 6) if length == "short" else 60)
        found = spans(encoder, prompt, writer.cast)
        weights = [weight for _, weight in lane_tokens(encoder, prompt.format(**writer.cast))]
        owners = [writer.owner.get(weight, "") for weight in weights]
        for name in writer.cast:
            expected = [index for index, owner in enumerate(owners) if owner == name]
            assert indices(found[name]) == expected, (seed, name, prompt)
            split += sum(len(occurrence) > 1 for occurrence in found[name])
    if length != "short":
        one_go = text_lanes(encoder)[0].key == "t5xxl"
        assert (split == 0) == one_go  # elsewhere descriptions were cut by the end of a chunk


def plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


@pytest.mark.parametrize("fillers", [3, 60])
def test_plain_prompts_hold_the_description_there_and_nowhere_else(encoder, fillers):
    """Two oracles: the tokens decoded, and a search for the tokens that the description gets in brackets."""
    for seed in range(PROMPTS // 2):
        chance = random.Random(seed)
        latin = [words for words in DESCRIPTIONS if plain(words).isascii() and "(" not in words]
        cast = {words: words for words in chance.sample(latin, 3) if words != "a man"}
        parts = [*cast, *chance.choices(list(cast), k=2), *chance.choices(FILLERS, k=fillers)]
        chance.shuffle(parts)
        prompt = " ".join(parts)
        found = spans(encoder, prompt, cast)
        tokens = lane_tokens(encoder, prompt, return_word_ids=True)
        read = [index for index, (_, _, word) in enumerate(tokens) if word != 0]
        ids = [tokens[index][0] for index in read]
        reader = text_lanes(encoder)[0].tokenizer.tokenizer
        for words, ranges in found.items():
            wanted = [token for token, weight in lane_tokens(encoder, f"x ({words}:1.3) x") if weight == 1.3]
            places = [place for place in range(len(ids)) if ids[place : place + len(wanted)] == wanted]
            expected = [[read[place + offset] for offset in range(len(wanted))] for place in places]
            assert [indices([occurrence]) for occurrence in ranges] == expected, (seed, words, prompt)
            for occurrence in ranges:
                assert plain(reader.decode([tokens[index][0] for index in indices([occurrence])])) == plain(words)


@pytest.mark.parametrize("seed", range(4))
def test_any_characters_at_all_are_followed(encoder, seed):
    """Each token's characters cover what was written, in order, whatever the brackets do."""
    chance = random.Random(seed)
    alphabet = [
        "(",
        ")",
        "\\",
        ":",
        "1.2",
        " ",
        "\n",
        "a",
        "Ba",
        "é",
        "女",
        "م",
        "👩‍🚀",
        "\0",
        "\1",
        "\2",
        "e\u0301",
        "\t",
    ]
    alphabet += ["embedding:", "cloak", "alien", ",", "<", "[", "'s", "İ", "ß", "½", "\u200b", "ไทย", "{", "}", "</s>"]
    for _ in range(40):
        prompt = "".join(chance.choices(alphabet, k=chance.randint(0, 60)))
        readable = read_prompt(prompt, True)
        for lane in text_lanes(encoder):
            try:
                chunks = encoder.tokenize(prompt)[lane.key]
            except IndexError:  # the host stumbles over an embedding without a name
                with pytest.raises(PromptError, match="without a name"):
                    locate_tokens(encoder, lane, prompt, readable)
                continue
            tokens = locate_tokens(encoder, lane, prompt, readable)
            assert len(tokens) == sum(map(len, chunks))
            starts = [token.start for token in tokens if token.stop > token.start]
            assert starts == sorted(starts) and all(
                0 <= token.start <= token.stop <= len(readable.text) for token in tokens
            )


def test_reading_equals_the_hosts():
    chance = random.Random(0)
    for _ in range(2000):
        prompt = "".join(
            chance.choices(["(", "(", ")", ")", "\\(", "\\)", "\\", ":", "1.2", " ", "ab", ":-.5", "女"], k=12)
        )
        readable = read_prompt(prompt, True)
        host = sd1_clip.token_weights(sd1_clip.escape_important(prompt), 1.0)
        pieces = [readable.text[start:stop] for start, stop in readable.segments]
        assert pieces == [sd1_clip.unescape_important(text) for text, _ in host]
        for character, origin in zip(readable.text, readable.origins, strict=True):
            assert character == prompt[origin + (prompt[origin : origin + 2] in ("\\(", "\\)"))]
    assert read_prompt("(a:1.2) \\(b", False).text == "(a:1.2) (b"


def words_of(clip, prompt, descriptions, append=False) -> dict[str, list[str]]:
    """What is found, as characters of what is read."""
    placed = place_items(prompt, descriptions, True, append)
    return {
        name: [placed.readable.text[item.start : item.stop] for item in placed.occurrences if item.name == name]
        for name in descriptions
    }


MAN, HATTED = {"m": "a man"}, {"m": "a man", "h": "a man in a hat"}


@pytest.mark.parametrize(
    "prompt, descriptions, found",
    [
        ("a man and a man in a hat", HATTED, {"m": ["a man"], "h": ["a man in a hat"]}),
        ("a man in a hat and a man", HATTED, {"m": ["a man"], "h": ["a man in a hat"]}),
        ("a (man in:1.2) a hat (a man)", HATTED, {"m": ["a man"], "h": ["a man in a hat"]}),
        ("{m} in a hat, a man in a hat", HATTED, {"m": ["a man"], "h": ["a man in a hat"]}),  # said so by the artist
        ("A man. a man's dog, A MAN", MAN, {"m": ["A man", "a man"]}),
        ("A MAN, a mAn", MAN, {"m": ["A MAN", "a mAn"]}),
        ("a manual for a man", MAN, {"m": ["a man"]}),
        ("a  man\nand a\n\tman", MAN, {"m": ["a  man", "a\n\tman"]}),
        ("Rose holds a rose", {"r": "Rose"}, {"r": ["Rose"]}),
        ("a rose by Rose", {"f": "a rose"}, {"f": ["a rose"]}),
        ("女人a man女人", MAN, {"m": ["a man"]}),
        ("你好红衣女人走路", {"r": "红衣女人"}, {"r": ["红衣女人"]}),
        ("والمرأة الجميلة", {"l": "المرأة الجميلة"}, {"l": ["المرأة الجميلة"]}),
        ("👧🏽 👧", {"g": "👧"}, {"g": ["👧"]}),
        ("👩‍🚀 👩", {"w": "👩"}, {"w": ["👩"]}),
        ("cafe\u0301 cafe", {"c": "cafe"}, {"c": ["cafe"]}),
        ("{ M } sits, \\{m\\}", MAN, {"m": ["a man"]}),
        ("({m}:1.2){m}", MAN, {"m": ["a man", "a man"]}),
        ("{m}", {"m": "a (tall:1.3) man"}, {"m": ["a tall man"]}),
        ("a tall man", {"m": "a (tall:1.3) man"}, {"m": ["a tall man"]}),
        ("a (ta:1.1)(ll:1.2) man", {"m": "a (tall:1.3) man"}, {"m": ["a tall man"]}),
        ("a man \\(tall\\)", {"m": "a man \\(tall\\)"}, {"m": ["a man (tall)"]}),
        ("{m} waves)", {"m": "a (man"}, {"m": ["a man"]}),
        ("$^.*[] x", {"s": "$^.*[]"}, {"s": ["$^.*[]"]}),
    ],
)
def test_what_is_found(prompt, descriptions, found):
    assert words_of(None, prompt, descriptions) == found


@pytest.mark.parametrize(
    "prompt, descriptions, sentence",
    [
        ("a dog", MAN, "it does not say 'a man' (m), or only inside"),
        ("a man in a hat", HATTED, "it does not say 'a man' (m), or only inside the words of another subject"),
        ("a mango", HATTED, "'a man' (m) and 'a man in a hat' (h)"),
        ("a dog", {"m": "a\n  man"}, "it does not say 'a man' (m)"),
        ("{ x\ny } waves", HATTED, "{x y} stands for nobody"),
        ("{x} waves", HATTED, "{x} stands for nobody; the cast has m, h"),
        ("{a|b} waves", HATTED, "{a|b} stands for nobody"),
        ("{} waves", HATTED, "{} stands for nobody"),
    ],
)
def test_what_is_not(prompt, descriptions, sentence):
    with pytest.raises(PromptError, match=re.escape(sentence)) as error:
        place_items(prompt, descriptions, True, False)
    assert "\n" not in str(error.value) and not str(error.value).endswith(".")


def test_names_that_differ_by_case_alone():
    cast = {"Al": "a man", "AL": "a dog"}
    assert words_of(None, "{Al} {AL}", cast) == {"Al": ["a man"], "AL": ["a dog"]}
    with pytest.raises(PromptError, match="stands for nobody"):
        place_items("{al}", cast, True, True)


def test_missing_descriptions_are_appended():
    placed = place_items("a man waves. ", {**HATTED, "{odd}": "a (big:1.2) dog"}, True, True)
    assert placed.prompt == "a man waves., a man in a hat, a (big:1.2) dog"
    assert [item.name for item in placed.occurrences] == ["m", "h", "{odd}"]
    assert place_items("a man", MAN, True, True).prompt == "a man"


def test_a_token_that_covers_two_subjects_is_both_theirs(flux_clip):
    """T5 knows no Chinese: one unknown token stands for both."""
    found = spans(flux_clip, "red{a}{b}blue", {"a": "红衣女人", "b": "黑衣男人"})
    assert set(indices(found["a"])) & set(indices(found["b"]))


def rows_fed(clip: comfy.sd.CLIP, key: str, prompt: str) -> torch.Tensor:
    """What the network of a lane is given: (L, width), all chunks one after the other."""
    network = getattr(clip.cond_stage_model, key if key == "t5xxl" else f"clip_{key}")
    chunks = [[token for token, _ in chunk] for chunk in clip.tokenize(prompt)[key]]
    return torch.cat([network.process_tokens([chunk], "cpu")[0][0] for chunk in chunks])


def places_of(rows: torch.Tensor, wanted: torch.Tensor) -> set[int]:
    starts = [start for start in range(len(rows)) if torch.equal(rows[start : start + len(wanted)], wanted)]
    return {start + offset for start in starts for offset in range(len(wanted))}


@pytest.mark.parametrize("name, vectors", [("cloak", {"t5xxl": 4, "l": 2, "g": 3}), ("alien", {})])
@pytest.mark.parametrize("fixture", ["flux_clip", "sdxl_clip"])
def test_textual_inversions(request, fixture, name, vectors):
    """Their vectors count one by one; those of another width the host leaves out, which moves all that follows."""
    clip = request.getfixturevalue(fixture)
    cast = {"a": f"a embedding:{name} (king:1.2)", "b": "the queen"}
    found = spans(clip, "see {a}, embedding:gone the queen; embedding:cloak, the  queen " + "x " * 80, cast)
    prompt = place_items(
        "see {a}, embedding:gone the queen; embedding:cloak, the  queen " + "x " * 80, cast, True, False
    ).prompt
    expected: dict[str, set[int]] = {"a": set(), "b": set()}
    for lane in text_lanes(clip):
        rows = rows_fed(clip, lane.key, prompt)

        def words(text, lane=lane):
            return rows_fed(clip, lane.key, text)[
                [i for i, (_, _, n) in enumerate(clip.tokenize(text, return_word_ids=True)[lane.key][0]) if n]
            ]

        inversion = torch.ones(vectors.get(lane.key, 0), 32)
        expected["a"] |= places_of(rows, torch.cat((words("a"), inversion, words("king"))))
        expected["b"] |= places_of(rows, words("the queen"))
    assert {key: set(indices(ranges)) for key, ranges in found.items()} == expected
    assert len(found["a"]) == 1 and len(found["b"]) == 2


def test_an_inversion_without_a_name(flux_clip):
    for prompt in ("a man, embedding:", "a man (embedding: :1.2)", "a man embedding:\n\n"):
        with pytest.raises(
            PromptError, match="'embedding:' without a name behind it; write embedding:name or take it out"
        ):
            spans(flux_clip, prompt, MAN)


@pytest.mark.parametrize("option", [{"t5xxl_min_length": 512}, {"t5xxl_min_padding": 7}, {"t5xxl_min_length": 0}])
def test_the_tokenizers_options(flux_clip, option):
    clip = flux_clip.clone()
    for name, value in option.items():
        clip.set_tokenizer_option(name, value)
    assert spans(clip, "we see {m}", MAN) == spans(flux_clip, "we see {m}", MAN)
    (lane,) = text_lanes(clip)
    placed = place_items("we see {m}", MAN, True, False)
    assert len(locate_tokens(clip, lane, placed.prompt, placed.readable)) == len(lane_tokens(clip, placed.prompt))


def test_the_refiner_reads_with_one_of_two(inversions):
    target = SimpleNamespace(params={}, clip=sdxl_clip.SDXLRefinerClipModel, tokenizer=sdxl_clip.SDXLTokenizer)
    tiny = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "projection_dim": 32,
    }
    clip = comfy.sd.CLIP(target, model_options={"clip_g_model_config": tiny})  # type: ignore[arg-type]
    assert [lane.key for lane in text_lanes(clip)] == ["g"]
    assert spans(clip, "a man waves", MAN) == {"m": [[(1, 3)]]}


@pytest.mark.parametrize(
    "tokenizer, name", [(SD3Tokenizer, "other"), (KleinTokenizer, "other"), (KleinTokenizer, "qwen3_4b")]
)
def test_text_encoders_that_cannot_be_followed(flux_clip, tokenizer, name):
    """One of another build, one without its network, and one that writes more into the prompt than was asked for."""
    clip = flux_clip.clone()
    clip.tokenizer = tokenizer()
    clip.cond_stage_model = torch.nn.ModuleDict({name: flux_clip.cond_stage_model.t5xxl})
    with pytest.raises(
        ValueError, match="this text encoder reads prompts in a way that cannot be followed; use one of"
    ):
        spans(clip, "a man waves", MAN)


def test_the_limit_of_a_text_encoder(flux_clip, sdxl_clip, clip):
    assert [lane.limit for each in (flux_clip, sdxl_clip, clip) for lane in text_lanes(each)] == [512, 75, 75, 254]


def test_spans_of_a_conditioning():
    assert spans_of({}, 3) == {} and spans_of({SPANS_KEY: {}}, 3) == {}
    assert spans_of({SPANS_KEY: {"a": [(0, 1), [2, 3]], "b": []}}, 3) == {"a": [(0, 1), (2, 3)], "b": []}
    for span in [(0, 4), (-1, 2), (2, 2), (2, 1)]:
        with pytest.raises(
            ValueError, match="its item spans do not fit its 3 tokens; connect the prompt as it comes from"
        ):
            spans_of({SPANS_KEY: {"a": [span]}}, 3)
