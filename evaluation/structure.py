"""Whether two pictures have the same things in the same places: a structure score in the manner of DreamSim.

DreamSim joins what several encoders make of a picture, each of length 1, into one vector, and takes the cosine, which is the
mean of the encoders' cosines. Here this is done place by place, with the encoders' patches instead of their summary of the
whole picture, which knows little of places:

    S(a, b) = 1/E Σ_e 1/P_e Σ_p cos(F_e,p(a), F_e,p(b))

F_e,p is what encoder e makes of patch p of a picture that is squeezed into a square, so that nothing is cut off. It is not
DreamSim itself: nothing is trained on people's judgements, so the numbers are comparable with each other only.

Source: Fu et al., "DreamSim", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .errors import EvaluationError
from .oks import SAME_SHAPE

AT_ONCE = 16  # pictures whose patches are in memory


class PlaceEncoder(Protocol):
    name: str

    def places(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, P, d), of length 1."""
        ...


def structure_scores(
    encoders: Sequence[PlaceEncoder], pictures: Sequence[torch.Tensor], references: Sequence[torch.Tensor]
) -> list[float]:
    """The score of every picture (H, W, 3) with its reference.

    Raises:
        EvaluationError: a picture is of another shape than its reference.
    """
    for picture, reference in zip(pictures, references, strict=True):
        _check_shapes(picture, reference)
    scores: list[float] = []
    for start in range(0, len(pictures), AT_ONCE):
        these, those = pictures[start : start + AT_ONCE], references[start : start + AT_ONCE]
        cosines = [place_cosines(encoder.places(these), encoder.places(those)) for encoder in encoders]
        scores += torch.stack(cosines).mean(dim=0).tolist()  # (E, N) -> N
    return scores


def place_cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(N,) means over places of the cosines of (N, P, d) and (N, P, d), both of length 1."""
    return (first * second).sum(dim=-1).mean(dim=-1)


def _check_shapes(picture: torch.Tensor, reference: torch.Tensor) -> None:
    (height, width), (tall, wide) = picture.shape[:2], reference.shape[:2]
    if not 1 - SAME_SHAPE <= (width / height) / (wide / tall) <= 1 + SAME_SHAPE:
        raise EvaluationError(
            f"the picture is {width} x {height}, the reference {wide} x {tall}; structure is compared place by place, so"
            " bring them to the same proportions"
        )
