"""The token strip: what is written on it, and in whose colour."""

from __future__ import annotations

import numpy as np
import pytest

from comfyui_ensemble.attention_patches.prompt_tokens import Token
from comfyui_ensemble.nodes.lettering import lettering
from comfyui_ensemble.nodes.token_strip import MAX_ROWS, WIDTH, chips_of, colour_of, draw_token_strip

START, END, PADDING = Token(0, 0, "start"), Token(0, 0, "end"), Token(0, 0, "padding")


def area(picture: np.ndarray, subject: int) -> int:
    """Pixels of a subject's colour."""
    return int((abs(picture * 255 - np.array(colour_of(subject))).max(-1) < 1).sum())


def test_what_is_written():
    text = "a  red女 fo x\ny"
    tokens = [
        START,
        Token(0, 1, "▁"),
        Token(0, 1, "a"),
        Token(3, 6, "▁red"),
        *[Token(6, 7, "part")] * 3,
        Token(8, 12, "fo x"),
        Token(11, 14, "[UNK]"),
        END,
        PADDING,
        PADDING,
    ]
    chips = chips_of(text, tokens)
    labels = ["start", "_", "a", "red", "女 1/3", "女 2/3", "女 3/3", "fo x", "x y (unknown)", "end", "padding × 2"]
    assert [chip.label for chip in chips] == labels
    assert [chip.index for chip in chips] == list(range(11))
    assert [chip.word for chip in chips] == [False, *[True] * 8, False, False]
    assert [chip.label for chip in chips if chip.joined] == ["a", "女 1/3", "女 2/3", "女 3/3", "x y (unknown)"]


def test_colours_stand_for_subjects():
    text = "one two three"
    tokens = [Token(0, 3, "one"), Token(4, 7, "two"), Token(8, 13, "three")]
    spans = {"a": [(0, 1)], "b": [(0, 2)], "c": []}
    picture = draw_token_strip(text, tokens, spans)
    assert picture.dtype == np.float32 and picture.shape[1:] == (WIDTH, 3) and 0 <= picture.min() <= picture.max() <= 1
    legend = area(draw_token_strip(text, tokens, {"a": [], "b": [], "c": []}), 0)
    assert legend > 500 and abs(area(picture, 2) - legend) < 60  # the same box in another colour
    assert area(picture, 1) > area(picture, 0) > legend + 100  # c has its box alone, b a token and a half, a half a one
    assert np.array_equal(picture, draw_token_strip(text, tokens, spans))


def test_colours_differ():
    colours = np.array([colour_of(number) for number in range(12)], dtype=float)
    apart = abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours))
    assert apart.min() > 20


@pytest.mark.parametrize("word", ["a", "w" * 400])
def test_long_prompts_stay_a_picture(word):
    text = " ".join([word] * 2500)
    step = len(word) + 1
    tokens = [Token(index * step, index * step + len(word), word) for index in range(2500)]
    picture = draw_token_strip(text, tokens, {"everybody" * 40: [(index, index + 1) for index in range(0, 2500, 2)]})
    assert picture.shape[0] < 40 * (MAX_ROWS + 6)


def test_letters_no_font_has_are_spelt_as_numbers():
    for text, spelt in [("plain", "plain"), ("a\U000f0000b", "a U+F0000 b"), ("\U000f0001", "U+F0001"), ("x y", "x y")]:
        written, font = lettering(text, 20)
        assert written == spelt and font.getlength(written) > 0
