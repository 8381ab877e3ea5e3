"""Item Prompt: encodes a prompt and remembers which of its tokens describe whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from comfy.sd import CLIP
from comfy_api.latest import io

from ..attention_patches.item_prompt import DescriptionError, encode_items
from ..attention_patches.prompt_text import PromptError, read_prompt
from .cast import Cast
from .errors import InputError, require_text, sentence_or_true
from .token_strip import draw_token_strip
from .types import CAST

ERROR, APPEND = "error", "append"
MISSING = (ERROR, APPEND)


class EnsembleItemPrompt(io.ComfyNode):
    """Encodes a prompt and records the item spans of the cast."""

    DISPLAY_NAME = "Item Prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleItemPrompt",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Encodes a prompt as the stock text encode does, and remembers which of its words describe whom."
            " Write {alice} where alice's description belongs, or write the description itself.",
            search_aliases=[
                "item description",
                "item spans",
                "One-for-All",
                "CCPA",
                "clip text encode",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of your model: FLUX.1, SDXL or MiniLM."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="{alice} waits at a bus stop in the rain",
                    tooltip="The prompt. {name} becomes the description of that subject; a description that stands here word"
                    " for word is found. Attention weights such as (red coat:1.2) are fine, inside a description too.",
                ),
                CAST.Input("cast", tooltip="The subjects; each needs a description of its own."),
                io.Combo.Input(
                    "missing",
                    options=list(MISSING),
                    default=ERROR,
                    optional=True,
                    tooltip="What to do about a subject whose description is not in the prompt: stop and say so, or append it"
                    " at the end.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning"), io.Image.Output(display_name="spans_image")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_check_prompt, prompt)

    @classmethod
    def execute(cls, clip: CLIP, prompt: str, cast: Cast, missing: str = ERROR) -> io.NodeOutput:
        _check_prompt(prompt)
        _check_cast(cast)
        descriptions = {subject.name: subject.description for subject in cast.subjects}
        with _input_errors():
            encoded = encode_items(clip, prompt, descriptions, missing == APPEND)
        strip = draw_token_strip(encoded.placed.readable.text, encoded.tokens, encoded.spans)
        return io.NodeOutput(encoded.conditioning, torch.from_numpy(strip)[None])


@contextmanager
def _input_errors() -> Iterator[None]:
    """Say at which input it lies that a prompt cannot be followed."""
    try:
        yield
    except PromptError as error:
        raise InputError(EnsembleItemPrompt.DISPLAY_NAME, "prompt", str(error)) from None
    except DescriptionError as error:
        _refuse_cast(str(error))
    except ValueError as error:
        raise InputError(EnsembleItemPrompt.DISPLAY_NAME, "clip", str(error)) from None


def _check_prompt(prompt: str) -> None:
    require_text(
        EnsembleItemPrompt.DISPLAY_NAME, "prompt", prompt, "write what the picture shows, with {name} for a subject"
    )


def _check_cast(cast: Cast) -> None:
    if not cast.subjects:
        _refuse_cast("it is empty; add a subject")
    # Brackets and weights aside, which are not read.
    read = {subject.name: read_prompt(subject.description, weighted=True).text for subject in cast.subjects}
    words = {name: " ".join(text.casefold().split()) for name, text in read.items()}
    silent = [name for name, text in words.items() if not text]
    if silent:
        _refuse_cast(f"no words describe {_listed(silent)}; write some in each Subject's description")
    for text, count in Counter(words.values()).items():
        if count > 1:
            names = _listed([name for name in words if words[name] == text])
            _refuse_cast(f"{names} are all described as '{text}'; use words of its own for each")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]


def _refuse_cast(problem: str) -> NoReturn:
    raise InputError(EnsembleItemPrompt.DISPLAY_NAME, "cast", problem)


NODES: list[type[io.ComfyNode]] = [EnsembleItemPrompt]
