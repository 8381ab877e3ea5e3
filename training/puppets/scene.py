"""Pictures of puppets with the truth about every pixel of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...pose_db.keypoints import KEYPOINTS, PoseFrame, frame_from_people
from ...pose_db.layout import stature
from ...pose_db.people import BODY, fit, read_people
from ...pose_db.render import render_frame
from .canvas import PART, PERSON_STEP, Canvas
from .drawing import puppet_marks
from .figure import SURE
from .identity import Puppet

LINE_WIDTH = 2  # of pose maps


@dataclass(frozen=True)
class Scene:
    """A picture of P puppets.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        puppets: P identities.
        people: (P, 18, 3) their keypoints in pixels.
        sizes: P statures in pixels.
        labels: (H, W) uint8: 0 for the background, else `PERSON_STEP` * (number + 1) + part, for what is visible.
        caption: the whole sentence, and everybody's words in it; empty where nobody gave any.
    """

    picture: np.ndarray
    puppets: tuple[Puppet, ...]
    people: np.ndarray
    sizes: tuple[float, ...]
    labels: np.ndarray
    caption: str = ""
    descriptions: tuple[str, ...] = ()

    @property
    def owners(self) -> np.ndarray:
        """(H, W) uint8: 0 for the background, else the puppet's number from 1."""
        return self.labels // PERSON_STEP

    @property
    def parts(self) -> np.ndarray:
        """(H, W) uint8: index in `canvas.PARTS`."""
        return self.labels % PERSON_STEP

    def mask(self, number: int, parts: Sequence[str] = ()) -> np.ndarray:
        """(H, W) bool: visible pixels of puppet `number` from 0, or of some of its parts only."""
        first = PERSON_STEP * (number + 1)
        if not parts:
            return (self.labels >= first) & (self.labels < first + PERSON_STEP)
        return np.logical_or.reduce([self.labels == first + PART[part] for part in parts])

    def frame(self) -> PoseFrame:
        """The people as an OpenPose frame."""
        height, width = self.labels.shape
        return frame_from_people(self.people, width, height)

    def pose_map(self, line_width: int = LINE_WIDTH) -> np.ndarray:
        """The people as pose-conditioned models see them: (H, W, 3) uint8."""
        height, width = self.labels.shape
        return render_frame(self.frame(), width, height, line_width)


def draw_scene(
    puppets: Sequence[Puppet], people: np.ndarray, background: np.ndarray, sizes: Sequence[float] | None = None
) -> Scene:
    """Puppets on keypoints, over a background.

    Args:
        puppets: P of them, one a person.
        people: (P, 18, 3) in pixels of the background.
        background: (H, W, 3) uint8, left as it is.
        sizes: P statures in pixels, where they are known already.
    """
    people = np.asarray(people, dtype=np.float64)
    sizes = [stature(body) for body in people] if sizes is None else sizes
    canvas = Canvas(background)
    for number in far_to_near(people):
        canvas.draw(puppet_marks(puppets[number], people[number], sizes[number]), number + 1)
    return Scene(canvas.picture(), tuple(puppets), people, tuple(sizes), canvas.labels())


def people_in(frame: PoseFrame, width: int, height: int) -> np.ndarray:
    """The people of an OpenPose frame, such as a retrieved pose, fitted into a picture: (P, 18, 3) in its pixels.

    Raises:
        ValueError: as `read_people`.
    """
    people = fit(read_people(frame), (frame["canvas_width"], frame["canvas_height"]), (width, height))
    return np.array([person[BODY] for person in people]).reshape(-1, len(KEYPOINTS), 3)


def far_to_near(people: np.ndarray) -> list[int]:
    """Farthest is who has most joints hidden within somebody else's reach, else whose lowest joint is highest."""
    if len(people) == 1:
        return [0]
    lowest = people[:, :, 1].max(axis=1).tolist()
    return sorted(range(len(people)), key=lambda number: (-_behind(people, number), lowest[number]))


def _behind(people: np.ndarray, number: int) -> int:
    """How many joints of a person are hidden where somebody else is."""
    hidden = [(x, y) for x, y, sure in people[number].tolist() if 0 < sure < SURE]
    if not hidden:
        return 0
    count = 0
    for other, body in enumerate(people):
        there = body[body[:, 2] > 0, :2]
        if other != number and len(there):
            (left, top), (right, bottom) = there.min(axis=0).tolist(), there.max(axis=0).tolist()
            count += sum(left <= x <= right and top <= y <= bottom for x, y in hidden)
    return count


def bounding_box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of a mask (H, W), or None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
