"""What the rules leave of a prompt, and which answers of a language model are used."""

from __future__ import annotations

import pytest

from comfyui_ensemble.pose_db.evaluate import load_held_out
from comfyui_ensemble.pose_db.normalizer import instruction, normalize_by_rules, parse_answer, strip_markup

EXAMPLES = {
    # names and relations
    "cinematic photo of my grandma Rose waving goodbye from the porch, golden hour, 85mm": (
        "an elderly woman waving goodbye from the porch"
    ),
    "three nurses and our teacher jumping": "three people and a person jumping",
    "Tom and Anna shaking hands in Paris, photorealistic, 8k, shot on Canon EOS R5": "a man and a woman shaking hands",
    "Emma Stone sitting cross-legged, Kodak Portra 400": "a woman sitting cross-legged",
    "Uncle Bob is dancing with Maria": "man is dancing with a woman",
    "a girl named Zyxa jumping": "a girl jumping",
    "a rose in her mouth, a woman dancing": "a rose in her mouth, a woman dancing",
    # syntax
    "(masterpiece:1.2), best quality, <lora:foo:0.8>, 1girl, solo, (looking back:1.3)": "one girl, looking back",
    "two boys arm wrestling at a table --ar 16:9 --v 6": "two boys arm wrestling at a table",
    "embedding:easy, a man jumping\nNegative prompt: ugly\nSteps: 20, Sampler: Euler": "a man jumping",
    "arms_crossed, from_behind, score_9": "arms crossed, from behind",
    # medium, style, light, lens
    "oil painting of an old man leaning on a cane, in the style of Rembrandt, chiaroscuro": "an old man leaning on a cane",
    "watercolor illustration of two kids on a seesaw, soft pastel palette": "two kids on a seesaw",
    "a muscular man doing push-ups, dramatic lighting, high contrast, f/1.8, bokeh": "a muscular man doing push-ups",
    "my sister doing a cartwheel on the beach at sunset": "my sister doing a cartwheel on the beach",
    # colours and clothes
    "a tall woman wearing a bright yellow raincoat and black boots jumping over a puddle": (
        "a tall woman jumping over a puddle"
    ),
    "woman in red leaning against a blue wall": "woman leaning against a wall",
    "young woman with curly red hair, blue eyes, kneeling to tie her shoe": "young woman, kneeling to tie her shoe",
    # what looks like style or clothing and is part of the pose
    "a woman peeling an orange, warm light": "a woman peeling an orange",
    "a man tying his red tie": "a man tying his tie",
    "a boy with his hands in his jacket": "a boy with his hands in his jacket",
    "a girl drawing with a pencil": "a girl drawing with a pencil",
    "a man lighting a candle": "a man lighting a candle",
    "a cop kicking a door in": "a person kicking a door in",
    # camera and crop
    "full body shot of a woman jumping, low angle, from behind": "full body shot of a woman jumping, low angle, from behind",
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_rules(prompt):
    assert normalize_by_rules(prompt) == EXAMPLES[prompt]


@pytest.mark.parametrize("prompt", ["masterpiece, 8k", "golden hour", "Anna", "a", "!!!", "日本語", "<lora:x:1> photo"])
def test_something_is_always_left(prompt):
    assert normalize_by_rules(prompt) or not strip_markup(prompt)


def test_normalising_a_query_again_changes_nothing():
    prompts = [case.prompt for case in load_held_out()]
    queries = [normalize_by_rules(prompt) for prompt in prompts]
    again = [normalize_by_rules(query) for query in queries]
    assert sum(one != other for one, other in zip(queries, again, strict=True)) <= 0.02 * len(queries)


def test_rules_only_leave_out():
    """Apart from names, counts and articles, every word of a query was in its prompt."""
    allowed = {"a", "an", "one", "two", "three", "elderly"}
    allowed |= {"man", "men", "woman", "women", "girl", "girls", "boy", "boys", "person", "people"}
    for case in load_held_out():
        words = set(strip_markup(case.prompt).lower().replace(",", " ").replace(";", " ").split())
        known = {word.strip(".:!?-'") for word in words} | allowed
        new = {word.strip(".:!?-'") for word in normalize_by_rules(case.prompt).replace(",", " ").split()} - known
        assert all(any(word in source for source in known) for word in new), (case.prompt, new)


@pytest.mark.parametrize(
    "answer",
    [
        "a woman waving goodbye from the porch",
        "Answer: a woman waving goodbye from the porch.",
        '"a woman waving goodbye from the porch"\n\nI left out the lens.',
        "<think>\nThe style goes.\n</think>\n\na woman waving goodbye from the porch",
        "```text\na woman waving goodbye from the porch\n```",
        "**Query:** a woman waving goodbye from the porch",
    ],
)
def test_usable_answers(answer):
    assert (
        parse_answer(answer, "photo of Anna waving goodbye from the porch") == "a woman waving goodbye from the porch"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n ",
        "<think> it never stops thinking",
        "...",
        "123 456",
        "ĠĠ##!! qz xvw kkkj",
        "Sure! Here is your rewritten sentence:",
        "a man riding a horse along the beach",
        "a woman waving " * 40,
    ],
)
def test_unusable_answers(answer):
    assert parse_answer(answer, "photo of Anna waving goodbye from the porch") is None


def test_the_instruction_ends_with_the_bare_prompt():
    assert instruction("(a man:1.2) jumping <lora:x:1>").endswith("\nPrompt: a man jumping\nAnswer:")
