"""Lay Out Poses and Render Pose as the host calls them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from comfy_api.latest import _io, io
from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes

from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.pose import EnsemblePoseRender
from comfyui_ensemble.nodes.pose_layout import EnsemblePoseLayout
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.layout import lay_out
from comfyui_ensemble.pose_db.render import render_frame

BOX = {"x": 10, "y": 20, "width": 200, "height": 300}


def pose(seed: int, people: int = 1, width: int = 512, height: int = 768) -> list[dict]:
    spots = np.random.default_rng(seed).uniform(50, 450, (people, 18, 2))
    return [frame_from_people(np.concatenate([spots, np.ones((people, 18, 1))], axis=-1), width, height)]


def body(values: list[float]) -> list[dict]:
    return [{"people": [{"pose_keypoints_2d": values}], "canvas_width": 512, "canvas_height": 768}]


def outputs(node_output: io.NodeOutput) -> tuple:
    assert node_output.result is not None
    return node_output.result


def render(*inputs, **others) -> tuple:
    return outputs(EnsemblePoseRender.execute(*inputs, **others))


def lay(*poses, width: int = 1024, height: int = 768, **others) -> dict:
    named = {f"pose{number}": one for number, one in enumerate(poses)}
    return outputs(EnsemblePoseLayout.execute(poses=named, width=width, height=height, **others))[0][0]


def as_the_host_passes_them(prompt_inputs: dict) -> dict:
    """What the host makes of a prompt's inputs for `execute`."""
    declared = EnsemblePoseLayout.INPUT_TYPES()
    finalized = _io.get_finalized_class_inputs(declared, prompt_inputs)
    assert prompt_inputs.keys() <= finalized[0]["required"].keys() | finalized[0]["optional"].keys()
    return _io.build_nested_inputs(prompt_inputs, finalized[-1])


def test_repeated_inputs_keep_the_order_of_the_cast():
    first, second, third = pose(1), pose(2, people=2), pose(3)
    inputs = {"poses.pose10": third, "poses.pose2": second, "poses.pose0": first, "width": 1024, "height": 768}
    frame = outputs(EnsemblePoseLayout.execute(**as_the_host_passes_them(inputs)))[0][0]
    assert frame == lay_out([first[0], second[0], third[0]], 1024, 768)
    assert [person["subject"] for person in frame["people"]] == [0, 1, 1, 2]


def test_a_pose_of_many_frames_gives_its_first():
    assert lay([*pose(1), *pose(2)]) == lay(pose(1))


def test_the_canvas_may_differ_from_every_pose():
    frame = lay(pose(1), pose(2, width=999, height=501), width=640, height=1536)
    assert (frame["canvas_width"], frame["canvas_height"]) == (640, 1536)


@pytest.mark.parametrize(
    "boxes",
    [
        [BOX, {"x": 300, "y": 0, "width": 100, "height": 700}],
        [[BOX, {"x": 300.0, "y": 0.0, "width": 100.0, "height": 700.0, "score": 0.9}]],
        [[BOX, {"x": 300, "y": 0, "width": 100, "height": 700}], [BOX]],
    ],
)
def test_boxes_come_in_every_form_of_the_host(boxes):
    frames = [pose(1)[0], pose(2)[0]]
    expected = lay_out(frames, 1024, 768, [(10, 20, 200, 300), (300, 0, 100, 700)])
    assert lay(*([frame] for frame in frames), boxes=boxes) == expected


def test_a_single_box_of_the_host():
    assert lay(pose(1), boxes=BOX) == lay_out(pose(1), 1024, 768, [(10, 20, 200, 300)])


def test_boxes_drawn_in_the_hosts_editor():
    state = [BOX | {"metadata": {}}, {"x": 256, "y": 0, "width": 768, "height": 768, "metadata": {}}]
    drawn = outputs(CreateBoundingBoxes.execute(1024, 768, editor_state=state))[1]
    assert lay(pose(1), pose(2), boxes=drawn) == lay_out(
        [*pose(1), *pose(2)], 1024, 768, [(10, 20, 200, 300), (256, 0, 768, 768)]
    )


@pytest.mark.parametrize(
    "boxes, message",
    [
        (BOX, "boxes: 2 poses need 2 boxes, but 1 came; give every pose one box, in the same order."),
        ([], "boxes: 2 poses need 2 boxes, but 0 came;"),
        ([[]], "boxes: 2 poses need 2 boxes, but 0 came;"),
        ("boxes", "boxes: 2 poses need 2 boxes, but 0 came;"),
        ([BOX] * 3, "boxes: 2 poses need 2 boxes, but 3 came;"),
        ([BOX, BOX | {"width": 0}], "boxes: box 2 (0 x 300 at (10, 20)) is smaller than a pixel; draw it larger."),
        ([BOX, BOX | {"height": -5}], "boxes: box 2 (200 x -5 at (10, 20)) is smaller than a pixel;"),
        ([BOX, BOX | {"x": math.nan}], "boxes: box 2 (200 x 300 at (nan, 20)) is not a place on the canvas;"),
        ([BOX | {"x": -1}, BOX], "boxes: box 1 (200 x 300 at (-1, 20)) reaches outside the 1024 x 768 canvas;"),
        ([BOX | {"x": 900}, BOX], "boxes: box 1 (200 x 300 at (900, 20)) reaches outside the 1024 x 768 canvas;"),
        ([BOX, BOX | {"height": 749}], "boxes: box 2 (200 x 749 at (10, 20)) reaches outside the 1024 x 768 canvas;"),
        ([BOX, {"x": 1, "y": 2}], "boxes: box 2 lacks x, y, width or height;"),
        ([BOX, BOX | {"x": "left"}], "boxes: box 2 lacks x, y, width or height;"),
    ],
)
def test_bad_boxes_are_one_sentence(boxes, message):
    with pytest.raises(InputError) as caught:
        lay(pose(1), pose(2), boxes=boxes)
    assert str(caught.value).startswith(f"Lay Out Poses, {message}")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damaged, problem",
    [
        (body([1.0, math.nan, 1.0] * 18), "person 1: pose_keypoints_2d holds a number that is not finite; detect"),
        (body([1.0, 1.0, 1.0] * 25), "person 1 has 25 body keypoints, expected 18 (BODY-18); set the detector"),
        (body([1.0, 1.0, 1.0] * 17), "person 1 has 17 body keypoints, expected 18 (BODY-18); set the detector"),
        (body([9000.0, 1.0, 1.0] * 18), "person 1 has a keypoint at (9000, 1), far outside the 512 x 768 canvas; give"),
    ],
)
def test_bad_poses_are_one_sentence_in_both_nodes(damaged, problem):
    with pytest.raises(InputError) as caught:
        lay(pose(1), damaged)
    assert str(caught.value).startswith(f"Lay Out Poses, poses: in pose 2, {problem}")
    with pytest.raises(InputError) as caught:
        render(damaged, 64, 64, 4)
    assert str(caught.value).startswith(f"Render Pose, pose: {problem}")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("nothing", [[], "pose", [{"people": []}], None])
def test_no_frames_is_one_sentence_in_both_nodes(nothing):
    with pytest.raises(InputError, match=r"Lay Out Poses, poses: pose 2 cannot be read, .*; connect a pose detector"):
        lay(pose(1), nothing)
    with pytest.raises(InputError, match=r"Render Pose, pose: .*; connect a pose detector or Retrieve Pose\.$"):
        render(nothing, 64, 64, 4)


def test_nobody_found_is_legal_and_draws_black():
    frame = lay(pose(1, people=0), pose(2, people=0))
    assert frame["people"] == []
    image, mask = render([frame], 64, 48, 4)
    assert image.shape == (1, 48, 64, 3) and not image.any() and not mask.any()


def test_inputs_are_left_alone():
    poses = [pose(1, people=3), pose(2)]
    boxes = [[dict(BOX), dict(BOX)]]
    before = copy.deepcopy((poses, boxes))
    frame = lay(*poses, boxes=boxes)
    render([frame], 640, 480, 4)
    assert (poses, boxes) == before


def test_every_frame_is_drawn_and_the_mask_is_where():
    frames = [*pose(1), *pose(2, people=4)]
    image, mask = render(frames, 256, 384, 3)
    assert image.shape == (2, 384, 256, 3) and image.dtype == mask.dtype == torch.float32
    for number, frame in enumerate(frames):
        picture = render_frame(frame, 256, 384, 3)
        np.testing.assert_array_equal((image[number] * 255).round().numpy(), picture)
        np.testing.assert_array_equal(mask[number].numpy(), picture.any(-1))


def test_the_threshold_reaches_the_drawing():
    doubtful = pose(1)
    doubtful[0]["people"][0]["pose_keypoints_2d"][2::3] = [0.1] * 18
    assert not render(doubtful, 64, 96, 4)[1].any()
    assert render(doubtful, 64, 96, 4, min_confidence=0.1)[1].any()
