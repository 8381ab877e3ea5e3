"""What drawing poses costs: rows for ``dev.py bench``."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from comfyui_ensemble.pose_db.keypoints import PoseFrame, frame_from_people
from comfyui_ensemble.pose_db.render import LINE_WIDTH, render_frame
from devtools.bench_row import AT_MOST, Row

SIDE = 1024  # pixels
PEOPLE = 5
REPEATS = 60
PROMISED_MS = 10.0
CONTROLNET_AUX = "controlnet_aux"


def controlnet_drawing() -> ModuleType | None:
    """``controlnet_aux.open_pose``, or None where the library, or something it needs, is not installed.

    The library's own ``__init__`` imports every one of its detectors and all they depend on; it is left out.
    """
    spec = importlib.util.find_spec(CONTROLNET_AUX)
    if spec is None:
        return None
    loaded = CONTROLNET_AUX in sys.modules
    if not loaded:
        sys.modules[CONTROLNET_AUX] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"{CONTROLNET_AUX}.open_pose")
    except ImportError:
        return None
    finally:
        if not loaded:  # whoever imports the library later gets it whole
            for name in [name for name in sys.modules if name.split(".")[0] == CONTROLNET_AUX]:
                del sys.modules[name]


def controlnet_poses(library: ModuleType, frame: PoseFrame) -> list[Any]:
    """A frame as controlnet-aux keeps poses: shares of the canvas, None for missing body joints, -1 for other ones."""
    size = frame["canvas_width"], frame["canvas_height"]

    def keypoints(person: dict[str, Any], part: str, missing: Any) -> list[Any] | None:
        values = np.reshape(person.get(part) or [], (-1, 3))
        found = [library.Keypoint(x / size[0], y / size[1]) if sure else missing for x, y, sure in values.tolist()]
        return found or None

    not_found = library.Keypoint(-1 / size[0], -1 / size[1])
    return [
        library.PoseResult(
            library.BodyResult(keypoints(person, "pose_keypoints_2d", None), 0.0, 0),
            keypoints(person, "hand_left_keypoints_2d", not_found),
            keypoints(person, "hand_right_keypoints_2d", not_found),
            keypoints(person, "face_keypoints_2d", not_found),
        )
        for person in frame["people"]
    ]


def rows() -> list[Row]:
    """Drawing five people at 1024 x 1024: the whole node in milliseconds, the drawing alone against controlnet-aux."""
    import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

    # isort: split
    from comfyui_ensemble.nodes.pose import EnsemblePoseRender

    random = np.random.default_rng(0)
    spots = random.uniform(0, SIDE * 0.7, (PEOPLE, 1, 2)) + random.uniform(0, SIDE * 0.3, (PEOPLE, 18, 2))
    frame = frame_from_people(np.concatenate([spots, np.ones((PEOPLE, 18, 1))], axis=-1), SIDE, SIDE)

    def ours() -> np.ndarray:
        return render_frame(frame, SIDE, SIDE)

    def node() -> None:
        EnsemblePoseRender.execute([frame], SIDE, SIDE, LINE_WIDTH)

    milliseconds = statistics.median(_time(node) for _ in range(REPEATS + 1))
    found = [Row("pose.render", f"Render Pose: {PEOPLE} people at {SIDE} x {SIDE}", "ms", milliseconds, PROMISED_MS)]
    library = controlnet_drawing()
    if library is not None:
        poses, draw = controlnet_poses(library, frame), library.draw_poses

        def theirs() -> np.ndarray:
            return draw(poses, SIDE, SIDE)

        ratio = statistics.median(_best_time(ours) / _best_time(theirs) for _ in range(REPEATS + 1))
        found.append(
            Row("pose.render_beside_controlnet", "drawing them, against controlnet-aux", "x", ratio, 1.0, AT_MOST)
        )
    return found


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000.0


def _best_time(call: Callable[[], Any]) -> float:
    """Of three, so that other programs on the machine weigh on neither side of a ratio."""
    return min(_time(call) for _ in range(3))
