"""Who stands how in a picture: from OpenPose files, or from OpenPose's body network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from ..models_info.registry import OPENPOSE_BODY, MissingModelError, find_openpose
from ..pose_db.exchange import OPENPOSE_SUFFIX, ExchangeError, read_openpose_file
from ..pose_db.keypoints import PoseFrame
from ..pose_db.people import BODY, Person, read_people
from .cases import Box
from .errors import EvaluationError


class PeopleFinder(Protocol):
    """Finds people; `name` tells one finder from another."""

    name: str

    def find(self, key: str, picture: torch.Tensor) -> PoseFrame | None:
        """The people of a picture (H, W, 3) that is called by a key; None where nobody has looked for them."""
        ...


class PoseFiles:
    """Poses that another program has found: `KEY_keypoints.json` or `KEY.json` for every picture."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"--poses: there is no folder {folder}; give one with OpenPose files")
        self.name, self._folder = "files", folder

    def find(self, key: str, picture: torch.Tensor) -> PoseFrame | None:
        height, width = picture.shape[:2]
        for ending in (OPENPOSE_SUFFIX, ".json"):
            path = self._folder / f"{key}{ending}"
            if path.is_file():
                try:
                    return read_openpose_file(path, (width, height))[0]
                except ExchangeError as error:
                    raise EvaluationError(f"--poses: {error}") from None
        return None


class BodyNetwork:
    """OpenPose's body network from models/openpose."""

    def __init__(self) -> None:
        """Read it.

        Raises:
            EvaluationError: controlnet-aux is not installed, or the file is of another network.
            MissingModelError: there is no such file.
        """
        if importlib.util.find_spec("controlnet_aux") is None:
            raise EvaluationError(
                "the Python package controlnet_aux, which finds people, is not installed; run `pip install controlnet-aux`,"
                " or give poses that are found already with --poses"
            )
        import comfy.model_management
        import comfy.utils
        from comfy.model_patcher import CoreModelPatcher

        from ..pose_db.openpose import body_network

        path = find_openpose()
        if path is None:
            raise MissingModelError(OPENPOSE_BODY.missing())
        self.name = path.name
        weights = cast("dict[str, torch.Tensor]", comfy.utils.load_torch_file(str(path), safe_load=True))
        try:
            self._network = body_network(weights)
        except ValueError as error:
            raise EvaluationError(f"{path.name}: {error}") from None
        self._patcher = CoreModelPatcher(
            self._network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def find(self, key: str, picture: torch.Tensor) -> PoseFrame | None:
        import comfy.model_management

        from ..pose_db.openpose import find_people

        comfy.model_management.load_models_gpu([self._patcher])
        pixels = (picture[..., :3].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        return find_people(self._network, pixels)


def person_at(frame: PoseFrame, box: Box | None) -> Person | None:
    """The one whose body is nearest to the middle of a box, or the largest where there is none; None where nobody is there.

    Raises:
        EvaluationError: the frame is damaged.
    """
    try:
        people = [person for person in read_people(frame) if BODY in person and (person[BODY][:, 2] > 0).any()]
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    if box is None:
        return max(people, key=_size, default=None)
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    inside = [person for person in people if _is_in(_middle(person), box)]
    return min(inside, key=lambda person: float(np.linalg.norm(_middle(person) - middle)), default=None)


def _seen(person: Person) -> np.ndarray:
    """(K, 2) of the keypoints that are there."""
    return person[BODY][person[BODY][:, 2] > 0, :2]


def _middle(person: Person) -> np.ndarray:
    return _seen(person).mean(axis=0)


def _size(person: Person) -> float:
    return float(np.ptp(_seen(person), axis=0).prod())


def _is_in(point: np.ndarray, box: Box) -> bool:
    return bool(box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3])
