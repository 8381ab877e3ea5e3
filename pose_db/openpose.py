"""Poses of real pictures with controlnet-aux's OpenPose body network (an optional dependency).

The network is built here and its weights are handed over as tensors, because the library's own loader unpickles any
file.

Source: Cao et al., CVPR 2017; package controlnet-aux, whose OpenPose code and weights are for non-commercial
use only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .keypoints import KEYPOINTS, PoseFrame, frame_from_people

if TYPE_CHECKING:
    from controlnet_aux.open_pose.body import Body  # pyright: ignore[reportMissingImports]

RESOLUTION = 512  # of a picture's shorter side, the ControlNet annotator's own


def body_network(weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The body network with the weights of ``body_pose_model``.

    Raises:
        ValueError: they are of another network; one sentence.
    """
    from controlnet_aux.open_pose.model import bodypose_model  # pyright: ignore[reportMissingImports]
    from controlnet_aux.open_pose.util import transfer  # pyright: ignore[reportMissingImports]

    network = bodypose_model()
    try:
        network.load_state_dict(transfer(network, weights))
    except (KeyError, RuntimeError, AttributeError):
        raise ValueError(
            "the file holds another network than OpenPose's body network; get body_pose_model.pth"
        ) from None
    return network.eval()


def find_people(network: torch.nn.Module, picture: np.ndarray, resolution: int = RESOLUTION) -> PoseFrame:
    """The people of a picture (H, W, 3) uint8 RGB, as an OpenPose frame of its size.

    Confidences are the peaks of the network's heat maps, which the library's own detector drops.
    """
    from controlnet_aux.util import resize_image  # pyright: ignore[reportMissingImports]

    height, width = picture.shape[:2]
    resized = resize_image(np.ascontiguousarray(picture), resolution)
    detector = _detector(network)
    candidates, subsets = detector(resized[:, :, ::-1].copy())  # the network was trained on BGR
    people = people_from_candidates(candidates, subsets)
    people[..., :2] *= (width / resized.shape[1], height / resized.shape[0])
    return frame_from_people(people, width, height)


def _detector(network: torch.nn.Module) -> Body:
    """The library's detector around a network that is loaded already."""
    from controlnet_aux.open_pose.body import Body  # pyright: ignore[reportMissingImports]

    detector: Any = Body.__new__(Body)  # its __init__ would unpickle a file
    detector.model = network
    return detector


def people_from_candidates(candidates: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """People (P, 18, 3) with x, y and confidence.

    Args:
        candidates: (C, 4) x, y, score and number of every peak.
        subsets: (P, 20) the peak of each of 18 keypoints, -1 for none, then the person's score and count.
    """
    people = np.zeros((len(subsets), len(KEYPOINTS), 3))
    chosen = (
        np.asarray(subsets)[:, : len(KEYPOINTS)].astype(int) if len(subsets) else np.zeros((0, len(KEYPOINTS)), int)
    )
    found = chosen >= 0
    people[found] = np.asarray(candidates).reshape(-1, 4)[chosen[found], :3]
    people[..., 2] = people[..., 2].clip(0, 1)
    return people
