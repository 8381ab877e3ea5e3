"""References of subjects: their crops, or what an editing workflow makes of those, and what CLIP and colours say of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ...models_info.files import whole_file
from ...models_info.sam_masks import look_at, subject_mask
from ...models_info.vision_input import cut_out
from ...pose_db.factory import seed_of
from ..errors import TrainingError
from ..pictures import DataError, read_picture
from .boxes import grown
from .colours import histogram
from .edit import DESCRIPTION, edit
from .models import Models, Remote
from .phrases import FACE
from .seeing import Scene, Subject, read_mask, write_mask
from .settings import BuildConfig
from .steps import ItemError, Report, Step, digest


@dataclass(frozen=True)
class Reference:
    """A picture file of a subject and its mask's."""

    picture: Path
    mask: Path

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The picture (h, w, 3) in [0, 1] and the mask (h, w), 0 or 1."""
        return read_picture(self.picture.read_bytes())[0].float() / 255, torch.from_numpy(read_mask(self.mask)).float()


Crops = dict[str, tuple[Reference, ...]]  # by scene, one a subject


def cut_crops(
    scenes: Sequence[Scene], masks: Step, config: BuildConfig, work: Path, report: Report
) -> tuple[Step, Crops]:
    """Every subject's part of its picture, as it is there, with its mask."""
    step = Step("crops", {"margin": config.margin}, work, (masks.identity,))
    by_key = {scene.key: scene for scene in scenes}

    def files(key: str) -> tuple[Reference, ...]:
        count = len(by_key[key].subjects)
        return tuple(
            Reference(step.folder / f"{key}_{number}.png", step.folder / f"{key}_{number}_mask.png")
            for number in range(count)
        )

    def make(key: str) -> Mapping[str, Any]:
        picture = by_key[key].shot.picture()
        for subject, reference in zip(by_key[key].subjects, files(key), strict=True):
            left, top, right, bottom = grown(subject.box, config.margin, picture.shape[1], picture.shape[0])
            write_picture(reference.picture, picture[top:bottom, left:right])
            write_mask(reference.mask, subject.read_mask()[top:bottom, left:right])
        return {"subjects": len(by_key[key].subjects)}

    step.run(by_key, make, report)
    return step, {key: files(key) for key in by_key}


def write_picture(path: Path, picture: torch.Tensor) -> None:
    """(h, w, 3) in [0, 1] as PNG."""
    pixels = (picture.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)


# What the crops look like


@dataclass(frozen=True)
class Looks:
    """What is known of the crops of a scene, row by row.

    Attributes:
        clip: (S, d) of length 1.
        colours: (S, 600).
        faces: (S, d') of length 1, zero where it is no face; None without a model for faces.
    """

    clip: torch.Tensor
    colours: torch.Tensor
    faces: torch.Tensor | None


def look_at_crops(
    scenes: Sequence[Scene], crops: Crops, after: Step, models: Models, work: Path, report: Report
) -> dict[str, Looks]:
    """CLIP embeddings and colours of all crops."""
    faces = models.faces.identity if models.faces is not None else ""
    step = Step("looks", {"vision": models.vision.identity, "faces": faces}, work, (after.identity,))
    by_key = {scene.key: scene for scene in scenes}

    def make(key: str) -> Mapping[str, Any]:
        looks = [_look(subject, crop, models) for subject, crop in zip(by_key[key].subjects, crops[key], strict=True)]
        with whole_file(step.folder / f"{key}.safetensors") as temporary:
            save_file({name: torch.stack([look[name] for look in looks]) for name in looks[0]}, temporary)
        return {"subjects": len(looks)}

    step.run(by_key, make, report)
    return {key: _read_looks(step.folder / f"{key}.safetensors") for key in by_key}


def _look(subject: Subject, crop: Reference, models: Models) -> dict[str, torch.Tensor]:
    picture, mask = crop.read()
    found = {
        "clip": models.vision.embedding(picture, mask),
        "colours": torch.from_numpy(histogram(picture.numpy(), mask.numpy() > 0.5)),
    }
    if models.faces is not None:
        # A face is shown as it is photographed: what encoders know of faces, they know of whole ones.
        embedding = models.faces.embedding(picture, torch.ones_like(mask))
        found["faces"] = embedding if subject.item.category == FACE else torch.zeros_like(embedding)
    return found


def _read_looks(path: Path) -> Looks:
    tensors = load_file(path)
    return Looks(tensors["clip"], tensors["colours"], tensors.get("faces"))


# Re-editing


def edit_references(
    scenes: Sequence[Scene],
    crops: Crops,
    after: Step,
    models: Models,
    editor: Remote,
    config: BuildConfig,
    work: Path,
    report: Report,
) -> tuple[dict[tuple[str, int], Reference], list[tuple[Scene, int, float]]]:
    """An edited reference for every subject of the manifest's categories, CLIP-I with its crop at least `config.clip_i`.

    Returns:
        References by scene and subject; and those subjects whose tries all failed, with their best CLIP-I.
    """
    decides = {"editor": editor.identity, "sam": models.sam_identity, "vision": models.vision.identity}
    decides |= {"prompt": config.edit_prompt, "seed": config.seed}
    step = Step("edits", decides, work, (after.identity,))
    wanted = {
        f"{scene.key}_{number}": (scene, number)
        for scene in scenes
        for number, subject in enumerate(scene.subjects)
        if subject.item.category in config.categories
    }
    passed: dict[tuple[str, int], Reference] = {}
    best: dict[str, float] = {}
    for attempt in range(config.edit_tries):
        open_ = {
            f"{key}_{attempt}": key for key, (scene, number) in wanted.items() if (scene.key, number) not in passed
        }
        if not open_:
            break

        def make(name: str, open_: Mapping[str, str] = open_, attempt: int = attempt) -> Mapping[str, Any]:
            scene, number = wanted[open_[name]]
            words = scene.subjects[number].item.words
            return _edit(step.folder / name, crops[scene.key][number], words, attempt, models, editor, config)

        for name, event in step.run(open_, make, report).items():
            scene, number = wanted[open_[name]]
            score = event.get("clip_i", -1.0)
            best[open_[name]] = max(score, best.get(open_[name], -1.0))
            if score >= config.clip_i:
                passed[scene.key, number] = _edited(step.folder / name)
    failed = [
        (scene, number, best[key]) for key, (scene, number) in wanted.items() if (scene.key, number) not in passed
    ]
    return passed, failed


def _edited(stem: Path) -> Reference:
    return Reference(stem.with_name(stem.name + ".png"), stem.with_name(stem.name + "_mask.png"))


def _edit(
    stem: Path, crop: Reference, words: str, attempt: int, models: Models, editor: Remote, config: BuildConfig
) -> Mapping[str, Any]:
    """One try: edit, find the subject in the result, compare it with the crop."""
    picture, mask = crop.read()
    prompt = config.edit_prompt.replace(DESCRIPTION, words)
    seed = seed_of(config.seed, int(digest(stem.name), 16), attempt)
    made = edit(editor.client, editor.workflow, editor.nodes, as_png(crop), prompt, seed)
    try:
        edited = read_picture(made)[0].float() / 255
    except DataError as error:
        raise TrainingError(f"the workflow's picture {error}", "workflow") from None
    try:
        found = subject_mask(models.sam, look_at(models.sam, edited))
    except ValueError as error:
        raise ItemError(str(error)) from None
    marks = torch.ones(edited.shape[:2]) if found is None else found.float().cpu()
    reference = _edited(stem)
    write_picture(reference.picture, edited)
    write_mask(reference.mask, marks.numpy() > 0.5)
    likeness = models.vision.embedding(picture, mask) @ models.vision.embedding(edited, marks)
    return {"clip_i": round(float(likeness), 6)}


def as_png(crop: Reference) -> bytes:
    """A subject on white, as a picture file."""
    picture, mask = crop.read()
    pixels = (cut_out(picture[None], mask[None])[0].numpy() * 255).round().clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
