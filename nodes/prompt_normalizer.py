"""A prompt's pose words, for searching the pose database."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..pose_db.normalizer import instruction, normalize_by_rules, parse_answer
from .errors import InputError, sentence_or_true
from .pose import check_prompt

ANSWER_TOKENS = 96  # one sentence; a model that needs more has not understood the task


class EnsemblePromptNormalizer(io.ComfyNode):
    """Leaves out of a prompt what does not shape a pose."""

    DISPLAY_NAME = "Normalize Prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePromptNormalizer",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Turns a picture prompt into a search text for poses: actions, people and camera stay; style,"
            " lighting, colours, clothes and names go.",
            search_aliases=["RAG-Pose", "ASTRA", "query normalization", "prompt cleaner", "LLM", "ensemble"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="cinematic photo of Anna and Tom shaking hands, golden hour",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt of your picture, just as it is.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="A language model that can write text, such as Qwen3 4B or Qwen3.5 2B from Load CLIP."
                    " Without one, built-in rules do the work.",
                ),
            ],
            outputs=[io.String.Output(display_name="query", tooltip="Connect it to the prompt of Retrieve Pose.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_prompt, prompt)

    @classmethod
    def execute(cls, prompt: str, clip: Any = None) -> io.NodeOutput:
        _check_prompt(prompt)
        if clip is None:
            return io.NodeOutput(normalize_by_rules(prompt))
        query = parse_answer(_ask(clip, instruction(prompt)), prompt)
        if query is not None:
            return io.NodeOutput(query)
        note = f"{cls.DISPLAY_NAME}: the language model gave no usable sentence, so the built-in rules were used"
        logging.warning(note)
        return io.NodeOutput(normalize_by_rules(prompt), ui=ui.PreviewText(note))


def _check_prompt(prompt: str) -> None:
    check_prompt(EnsemblePromptNormalizer.DISPLAY_NAME, prompt)


def _ask(clip: Any, text: str) -> str:
    """The answer of the host's own text generation; the most likely words, so a prompt always gives the same query."""
    from comfy_extras.nodes_textgen import TextGenerate  # an older host lacks it, and only this input needs it

    try:
        return TextGenerate.execute(clip, text, ANSWER_TOKENS, {"sampling_mode": "off"}).args[0]
    except AttributeError as error:  # what the host raises where a text encoder has no way to generate
        raise InputError(
            EnsemblePromptNormalizer.DISPLAY_NAME,
            "clip",
            "this text encoder cannot write text; connect a language model such as Qwen3 4B, or nothing to use the"
            " built-in rules",
        ) from error


NODES: list[type[io.ComfyNode]] = [EnsemblePromptNormalizer]
