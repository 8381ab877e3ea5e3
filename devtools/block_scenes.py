"""Pictures of coloured blocks, which stand where their skeletons say: the smallest world that a training can learn from."""

from __future__ import annotations

from typing import Any

import torch

from comfyui_ensemble.training.sample import TrainingSample, TrainingSubject

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "purple": (0.6, 0.1, 0.7),
}
REFERENCE = 32


class BlockScenes:
    """A `Source` of `count` pictures of `size` (width, height): one or two blocks, by turns, of the given categories."""

    def __init__(
        self,
        count: int = 4,
        size: tuple[int, int] = (64, 64),
        blocks: tuple[int, ...] = (1, 2),
        categories: tuple[str, ...] = ("person",),
    ) -> None:
        self.count, self.size, self.blocks, self.of = count, size, blocks, categories
        self.identity = f"blocks {count} {size} {blocks} {categories}"

    def __len__(self) -> int:
        return self.count

    def row_name(self, index: int) -> str:
        return f"picture {index}"

    def target_size(self, index: int) -> tuple[int, int]:
        return self.size

    def categories(self, index: int) -> list[str]:
        return [self._category(index, place) for place in range(self.blocks[index % len(self.blocks)])]

    def _category(self, index: int, place: int) -> str:
        return self.of[(index + place) % len(self.of)]

    def sample(self, index: int) -> TrainingSample:
        width, height = self.size
        number = self.blocks[index % len(self.blocks)]
        target = torch.full((height, width, 3), 0.2 + 0.15 * (index % 4))
        subjects = []
        for place in range(number):
            name = list(COLOURS)[(index + 2 * place) % len(COLOURS)]
            left = (1 + 2 * place) * width // (2 * number) - width // 8
            box = (left, height // 4, left + width // 4, height - height // 8)
            target[box[1] : box[3], box[0] : box[2]] = torch.tensor(COLOURS[name])
            subjects.append(_block(name, self._category(index, place), box))
        words = " beside ".join(subject.description for subject in subjects)
        return TrainingSample(f"{self.identity}/{index}", target, f"there is {words}", tuple(subjects))


def _block(colour: str, category: str, box: tuple[int, int, int, int]) -> TrainingSubject:
    reference = torch.zeros(REFERENCE, REFERENCE, 3)
    mask = torch.zeros(REFERENCE, REFERENCE)
    mask[8:24, 8:24] = 1
    reference[8:24, 8:24] = torch.tensor(COLOURS[colour])
    return TrainingSubject(
        name=colour,
        description=f"a {colour} block",
        category=category,
        reference=reference,
        reference_mask=mask,
        box=tuple(map(float, box)),  # type: ignore[arg-type]
        person=_skeleton(box),
    )


def _skeleton(box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A neck, shoulders and hips at a block's corners."""
    left, top, right, bottom = box
    keypoints = [[0.0, 0.0, 0.0] for _ in range(18)]
    for joint, x, y in (
        (1, (left + right) / 2, top),
        (2, left, top),
        (5, right, top),
        (8, left, bottom),
        (11, right, bottom),
    ):
        keypoints[joint] = [float(x), float(y), 1.0]
    return {"pose_keypoints_2d": [value for keypoint in keypoints for value in keypoint]}
