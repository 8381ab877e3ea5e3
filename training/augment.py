"""Reference augmentation and condition dropout, as functions of the seed and of the place in the training.

Reference augmentation is AnyStory's (section 3.4: rotation, crop, zero padding): the subject turns, is cut into, and stands
smaller on black, so that the encoder learns who it is and not where it stands.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from .randomness import generator

MAX_ROTATION = 30.0  # degrees, to either side
MIN_CROP = 0.7  # share of a side that a crop keeps at least
MAX_PADDING = 0.3  # share of a side that becomes black at most
KEPT_SUBJECT = 0.5  # share of the subject that is still there after augmentation, or there is none


def augment_reference(
    picture: torch.Tensor, mask: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference (h, w, 3) and its mask (h, w), turned, cropped and padded together; their size stays.

    A draw that would leave less than half of the subject is not carried out.
    """
    turn, crop, padding, across, down = torch.rand(5, generator=random).tolist()
    height, width = mask.shape
    # A picture is padded or cropped, never both: the one would undo the other.
    zoom = 1 - 2 * (1 - MIN_CROP) * (crop - 0.5) if crop >= 0.5 else 1 / (1 - MAX_PADDING * padding)
    matrix = affine_matrix((2 * turn - 1) * MAX_ROTATION, zoom, (2 * across - 1, 2 * down - 1), (width, height))
    both = moved(torch.cat([picture, mask[..., None]], dim=-1), matrix)
    # What is seen of the subject, at its old scale.
    if both[..., 3].sum() * zoom**2 < KEPT_SUBJECT * mask.sum():
        return picture, mask
    return both[..., :3].contiguous(), both[..., 3].contiguous()


def moved(picture: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(h, w, channels) as `affine_matrix` says, black where nothing was."""
    height, width, channels = picture.shape
    grid = affine_grid(matrix[None], [1, channels, height, width], align_corners=False)
    values = picture.movedim(-1, 0)[None]
    return grid_sample(values, grid, padding_mode="zeros", align_corners=False)[0].movedim(0, -1).clamp_(0, 1)


def affine_matrix(degrees: float, zoom: float, place: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
    """(2, 3): from a place in the new picture to the place in the old one, both in [-1, 1] from edge to edge.

    Args:
        degrees: by which the picture turns clockwise about its centre.
        zoom: side of the part that is seen, in sides of the picture: below 1 a crop, above 1 a padded picture.
        place: of that part, -1 for the left or upper end and 1 for the other, x and y.
        size: width and height in pixels; the turn is one in pixels, so nothing is sheared.
    """
    width, height = size
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shift = [side * abs(1 - zoom) for side in place]
    return torch.tensor(
        [
            [zoom * cosine, zoom * sine * height / width, shift[0]],
            [-zoom * sine * width / height, zoom * cosine, shift[1]],
        ]
    )


def dropped(seed: int, purpose: str, position: int, share: float) -> bool:
    """Whether a condition is left out at a position, in `share` of all positions. `purpose` names the condition."""
    return torch.rand((), generator=generator(seed, f"dropout/{purpose}", position)).item() < share
