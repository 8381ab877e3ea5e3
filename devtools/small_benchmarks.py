"""The benchmarks' datasets in miniature, drawn here and laid out as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# x and y of COCO's 17 keypoints in shares of a person's box: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
_STANDING = (
    *((0.5, 0.08), (0.55, 0.06), (0.45, 0.06), (0.6, 0.08), (0.4, 0.08)),
    *((0.75, 0.22), (0.25, 0.22), (0.85, 0.38), (0.15, 0.38), (0.9, 0.5), (0.1, 0.5)),
    *((0.65, 0.52), (0.35, 0.52), (0.65, 0.74), (0.35, 0.74), (0.65, 0.96), (0.35, 0.96)),
)

# The published file has 25 prompts of each kind and 30 subjects.
DREAMBENCH_PROMPTS = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
cat,cat
dog,dog
teapot,teapot

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} on top of a white rug'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""


def draw_picture(path: Path, size: tuple[int, int], number: int, cut_out: bool = False) -> Path:
    """A coloured blob on another colour, or on nothing; the number decides the colours."""
    random = np.random.default_rng(number)
    colours = [tuple(int(value) for value in random.integers(30, 226, size=3)) for _ in range(2)]
    picture = Image.new("RGBA", size, (0, 0, 0, 0) if cut_out else (*colours[0], 255))
    width, height = size
    box = (width // 4, height // 5, width * 3 // 4, height * 9 // 10)
    ImageDraw.Draw(picture).ellipse(box, fill=(*colours[1], 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if path.suffix == ".png" else picture.convert("RGB")).save(path)
    return path


def write_small_coco(folder: Path, pictures: int = 6, split: str = "val2017") -> Path:
    """Pictures with 1, 2, 3, 1, 2, 3 ... people; and after them one with four, one with a crowd, one with somebody whose
    keypoints are not labelled, one without a caption."""
    images, people, captions = [], [], []
    for number in range(1, pictures + 5):
        width, height = (96, 64) if number % 2 else (64, 96)
        name = f"{number:012d}.jpg"
        draw_picture(folder / split / name, (width, height), number)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        count = (number - 1) % 3 + 1 if number <= pictures else 4 if number == pictures + 1 else 1
        people += [_person(number, place, count, (width, height)) for place in range(count)]
        captions.append({"id": 100 + number, "image_id": number, "caption": f"Second words of picture {number}."})
        captions.append(
            {"id": number, "image_id": number, "caption": f"{count} people (a test)\n in picture {number}."}
        )
    people[-3]["iscrowd"] = 1
    people[-2]["keypoints"] = [0] * 51
    captions = [each for each in captions if each["image_id"] != pictures + 4]
    _write(folder / "annotations" / f"person_keypoints_{split}.json", {"images": images, "annotations": people})
    _write(folder / "annotations" / f"captions_{split}.json", {"images": images, "annotations": captions})
    return folder


def _person(image: int, place: int, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """Somebody who stands in one of so many columns of a picture; people are listed from right to left."""
    width, height = size[0] / count, size[1] * 0.8
    left, top = (count - 1 - place) * width, size[1] * 0.1
    keypoints = [value for x, y in _STANDING for value in (left + x * width, top + y * height, 2)]
    keypoints[3:6] = [0, 0, 0]  # one that is not labelled
    return {
        "id": 10 * image + place,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": 16,
        "bbox": [left, top, width, height],
        "area": 0.5 * width * height,
    }


def write_small_dreambench(folder: Path, pictures: int = 2) -> Path:
    """Five subjects, two of them alive."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts_and_classes.txt").write_text(DREAMBENCH_PROMPTS, encoding="utf-8")
    for number, name in enumerate(("backpack", "bear_plushie", "cat", "dog", "teapot")):
        for place in range(pictures):
            draw_picture(folder / name / f"{place:02d}.jpg", (40, 48), 10 * number + place)
    return folder


def write_small_humanbench(folder: Path, each: int = 3) -> Path:
    """Some pictures of each kind with descriptions."""
    for kind_number, kind in enumerate(("face", "upper", "lower", "dress", "bag")):
        for number in range(each):
            picture = draw_picture(folder / kind / f"{kind}{number}.png", (32, 40), 100 + 10 * kind_number + number)
            picture.with_suffix(".txt").write_text(f"the {kind} number {number}.\n", encoding="utf-8")
    return folder


def write_small_seal(folder: Path) -> Path:
    """Two humans, a celebrity and an animal; two poses and an edge map of humans, a pose of animals. Some are cut out."""
    shown = {
        "appearance/human/alice.png": "a woman in a red shirt",
        "appearance/human/bruno.png": "a man in a green shirt",
        "appearance/celebrity/carla.png": "a singer in a blue dress",
        "appearance/animal/dog.png": "a brown dog",
        "structure/human/pose/sitting.png": "sitting on a bench",
        "structure/human/pose/waving.png": "waving from a balcony",
        "structure/human/canny/running.png": "running along a beach",
        "structure/animal/pose/lying.png": "lying on a carpet",
    }
    for number, (name, words) in enumerate(shown.items()):
        picture = draw_picture(folder / name, (48, 64), 200 + number, cut_out=number % 2 == 0)
        picture.with_suffix(".txt").write_text(words, encoding="utf-8")
    return folder


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
