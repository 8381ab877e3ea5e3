"""A sample as FLUX reads it, encoded by the very functions that the inference nodes call.

Reference Latents, Render Pose, Item Prompt and DSM make a conditioning of a cast at inference; here the same functions make it
of a training sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..attention_patches.dsm_features import vision_states
from ..attention_patches.item_prompt import encode_caption
from ..attention_patches.item_spans import SPANS_KEY
from ..attention_patches.layout import Reference, token_grid
from ..attention_patches.prompt_text import PromptError
from ..attention_patches.reference_latents import encode_reference, shows_pose
from ..models_info.vision_input import cut_out
from ..pose_db.render import render_frame
from .encoding import HostEncoders, Tensors
from .sample import TrainingSample, TrainingSubject


@dataclass(frozen=True)
class Prompt:
    """An encoded caption.

    Attributes:
        text: (1, L, d_txt).
        pooled: (1, d_vec), or None where the encoder has none.
        spans: token ranges of every subject's description.
    """

    text: torch.Tensor
    pooled: torch.Tensor | None
    spans: Mapping[str, Sequence[tuple[int, int]]]


class FluxEncoders(HostEncoders):
    """The encoders of a training of FLUX."""

    def reference(self, subject: TrainingSubject) -> torch.Tensor:
        """A subject's reference as Reference Latents encodes it, (1, C, h, w)."""
        return self.pose_map(_cut_out(subject))

    def pose_map(self, picture: torch.Tensor) -> torch.Tensor:
        """A pose map (1, H, W, 3) as Reference Latents encodes it, (1, C, h, w)."""
        return self.kept(("vae",), "reference", (picture,), lambda: {"latent": encode_reference(self.vae, picture)})[
            "latent"
        ]

    def vision(self, subject: TrainingSubject, layers: Sequence[int]) -> torch.Tensor:
        """What DSM reads of a subject's reference, (1, layers, patches, d_clip)."""
        encoder, picture = self.clip_vision, _cut_out(subject)
        assert encoder is not None
        seen = f"vision {tuple(layers)}"
        return self.kept(
            ("CLIP vision",), seen, (picture,), lambda: {"states": vision_states(encoder, picture, layers)}
        )["states"]

    def prompt(self, caption: str, descriptions: Mapping[str, str]) -> Prompt:
        """A caption as Item Prompt encodes it. Subjects described in the same words share the places where these stand.

        Raises:
            ValueError: the caption does not say a description, or the text encoder is unknown.
        """
        asked: dict[str, str] = {}  # by their words: each once
        for description in descriptions.values():
            asked.setdefault(_words(description), description)
        asked.pop("", None)

        def encode() -> Tensors:
            try:
                ((text, options),) = encode_caption(self.clip, caption, asked).conditioning
            except PromptError:
                raise ValueError(
                    "its caption does not say the description of every subject, or only inside that of another; write each"
                    " into the caption word for word"
                ) from None
            spans = {f"span {words}": _table(spans) for words, spans in options[SPANS_KEY].items()}
            pooled = options.get("pooled_output")
            return {"text": text, **spans, **({} if pooled is None else {"pooled": pooled})}

        made = self.kept(("text encoder",), f"prompt {(caption, sorted(asked))!r}", (), encode)
        found = {words: [(start, stop) for start, stop in made[f"span {words}"].tolist()] for words in asked}
        spans = {name: found.get(_words(text), []) for name, text in descriptions.items()}
        return Prompt(made["text"], made.get("pooled"), spans)


def draw_pose_map(sample: TrainingSample, line_width: int) -> torch.Tensor | None:
    """The people of a sample as Render Pose draws them at the target's size, (1, H, W, 3); None where there is nobody."""
    people = [subject.person for subject in sample.subjects if subject.person is not None]
    if not people:
        return None
    height, width = sample.target.shape[:2]
    frame = {"people": people, "canvas_width": width, "canvas_height": height}
    drawn = render_frame(frame, width, height, line_width)
    picture = torch.from_numpy(np.divide(drawn, 255.0, dtype=np.float32))[None]
    return picture if shows_pose(picture) else None


def subject_names(sample: TrainingSample) -> list[str]:
    """Names by place in the sample: how a subject is called is nothing to learn, and equal samples batch better."""
    return [f"subject {number}" for number, _ in enumerate(sample.subjects, start=1)]


def as_reference(name: str, subject: TrainingSubject, latent: torch.Tensor) -> Reference:
    """What a subject's reference latent is."""
    return Reference("subject", token_grid(latent), name, subject.category)


def as_pose(latent: torch.Tensor) -> Reference:
    """What a pose map's latent is."""
    return Reference("pose", token_grid(latent))


def _cut_out(subject: TrainingSubject) -> torch.Tensor:
    return cut_out(subject.reference[None], subject.reference_mask[None])


def _words(description: str) -> str:
    return " ".join(description.split())


def _table(spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor([list(span) for span in spans], dtype=torch.int64).reshape(-1, 2)
