"""Anchor Align as the host calls it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.anchor_align import Box, align, mask_box, moved_box
from comfyui_ensemble.attention_patches.projection import project
from comfyui_ensemble.models_info.sam import load_sam
from comfyui_ensemble.nodes.anchor_align import EnsembleAnchorAlign
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.pose import EnsemblePoseRender
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.people import BODY
from comfyui_ensemble.pose_db.subjects import subjects_of
from devtools.small_sam import brightness_sam

Ints = tuple[int, int, int, int]
FIGURE = np.array(
    [
        (0.50, 0.10), (0.50, 0.20), (0.42, 0.20), (0.38, 0.35), (0.36, 0.48), (0.58, 0.20), (0.62, 0.35), (0.64, 0.48),
        (0.45, 0.50), (0.45, 0.70), (0.45, 0.92), (0.55, 0.50), (0.55, 0.70), (0.55, 0.92),
        (0.48, 0.08), (0.52, 0.08), (0.46, 0.09), (0.54, 0.09),
    ]
)  # fmt: skip


def photo(height: int, width: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))


def mask_of(height: int, width: int, *boxes: Ints) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def drawn(height: int, width: int, *boxes: Ints, background: float = 0.0) -> torch.Tensor:
    """Grey boxes on a plain background."""
    return background + (0.8 - background) * mask_of(height, width, *boxes).amax(dim=0)[None, ..., None].expand(
        -1, -1, -1, 3
    )


def pose(*places: tuple[float, float, float], width: int = 300, height: int = 240) -> list[dict]:
    people = [np.concatenate([FIGURE * size + [left, top], np.ones((18, 1))], axis=1) for left, top, size in places]
    return [frame_from_people(np.stack(people) if people else np.zeros((0, 18, 3)), width, height)]


def render(poses: list[dict], width: int, height: int, line_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The drawing and its mask."""
    result: Any = EnsemblePoseRender.execute(poses, width, height, line_width).result
    return result


def run(*inputs, **others) -> Any:
    """image, report, preview, pose, mask"""
    return EnsembleAnchorAlign.execute(*inputs, **others).result


def refused(*inputs, **others) -> str:
    with pytest.raises(InputError) as caught:
        EnsembleAnchorAlign.execute(*inputs, **others)
    message = str(caught.value)
    assert message.startswith("Anchor Align, ") and message.endswith(".") and "\n" not in message
    return message.removeprefix("Anchor Align, ")


def near(box: Box | None, expected, within: float = 1.0) -> bool:
    return box is not None and float(np.abs(np.array(box) - np.array(expected)).max()) <= within


def test_the_subject_stands_where_the_appearances_does():
    own, target = (20, 30, 60, 110), (100, 40, 150, 160)
    structure, appearance = photo(128, 96), photo(200, 256, seed=1)
    masks = mask_of(128, 96, own), mask_of(200, 256, target)
    image, report, preview, poses, mask = run(structure, appearance, *masks)
    assert image.shape == appearance.shape and mask.shape == (1, 200, 256)
    move = align(Box(*own), Box(*target))
    assert move == (1.5, 125 - 1.5 * 40, 160 - 1.5 * 110)
    assert near(mask_box(mask[0]), moved_box(Box(*own), move))
    border = torch.cat([structure[0, 0], structure[0, -1], structure[0, :, 0], structure[0, :, -1]])
    expected = project(structure[0], move, (200, 256), border.median(dim=0).values)
    assert torch.equal(image[0], expected)
    assert report == (
        "structure box 40 x 80 at (20, 30), from structure_mask\n"
        "appearance box 50 x 120 at (100, 40), from appearance_mask\n"
        "scale 1.5, translation (+65.0, -5.0)\n"
        "nothing is cut off"
    )
    assert preview.ndim == 4 and preview.shape[-1] == 3 and preview.min() >= 0 and preview.max() <= 1
    assert poses[0]["people"] == [] and (poses[0]["canvas_width"], poses[0]["canvas_height"]) == (256, 200)


def test_what_is_cut_off_is_reported():
    report = run(drawn(100, 100, (10, 60, 90, 80)), photo(100, 60), None, mask_of(100, 60, (0, 20, 10, 60)))[1]
    # scale 2: the box is 160 wide around x = 5 and reaches from -75 to 85 on a canvas of 60
    assert report.endswith("cut off: 62.5% of the box (left 46.9%, right 15.6%)")


def test_a_whole_depth_map_is_moved_with_its_background():
    structure = drawn(64, 64, (20, 10, 40, 50), background=0.25)
    image, report, *_ = run(structure, photo(64, 64), None, mask_of(64, 64, (2, 40, 12, 60)))
    assert "from the plain background" in report
    assert torch.allclose(image[0, :30, 40:], torch.tensor(0.25))
    assert torch.isclose(image[0, 55, 7], torch.tensor(0.8)).all()


def test_nothing_given_is_changed():
    structure, appearance = photo(64, 48, channels=4), photo(80, 60, seed=1)
    masks = mask_of(64, 48, (5, 5, 20, 40)), mask_of(80, 60, (9, 9, 30, 70))
    poses = pose((10, 10, 200))
    before = copy.deepcopy((structure, appearance, masks, poses))
    run(structure, appearance, *masks, structure_pose=poses)
    assert all(torch.equal(one, other) for one, other in zip(before[:2], (structure, appearance), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before[2], masks, strict=True)) and before[3] == poses


def test_switched_off_it_passes_the_structure_on():
    structure, poses = photo(64, 48, channels=4), pose((10, 10, 200))
    image, report, preview, same_pose, mask = run(
        structure, photo(80, 60), None, None, structure_pose=poses, enabled=False
    )
    assert image is structure and same_pose is poses and report == "Not aligned: enabled is off."
    assert preview.shape == (1, 64, 48, 3) and mask.shape == (1, 64, 48) and bool((mask == 1).all())
    given = mask_of(64, 48, (1, 1, 3, 3))
    assert run(structure, photo(8, 8), given, None, enabled=False)[4] is given
    assert run(structure, photo(8, 8), enabled=False)[3] == [frame_from_people(np.zeros((0, 18, 3)), 48, 64)]


def test_an_alpha_channel_is_the_mask():
    own, target = (20, 30, 60, 110), (100, 40, 150, 160)
    masks = mask_of(128, 96, own), mask_of(200, 256, target)
    pictures = [torch.cat([photo(*mask.shape[1:]), mask[..., None]], dim=-1) for mask in masks]
    image, report, _, _, mask = run(*pictures)
    assert image.shape == (1, 200, 256, 3) and report.count("from the alpha channel") == 2
    assert near(mask_box(mask[0]), moved_box(Box(*own), align(Box(*own), Box(*target))))
    outside = image[0][mask[0] == 0]  # what transparent pixels hid does not show
    assert torch.allclose(outside, outside[0].expand_as(outside), atol=1e-6)
    assert "from structure_mask" in run(*pictures, masks[0])[1]  # a mask goes first


def test_an_opaque_alpha_channel_says_nothing():
    opaque = torch.cat([photo(64, 48), torch.ones(1, 64, 48, 1)], dim=-1)
    message = refused(opaque, photo(80, 60), None, mask_of(80, 60, (9, 9, 30, 70)))
    assert message == (
        "structure: its background is not plain, so nothing tells the subject; connect structure_mask or sam."
    )


def test_a_picture_in_greys():
    grey = drawn(64, 64, (20, 10, 40, 50))[..., :1]
    image = run(grey, photo(64, 64), None, mask_of(64, 64, (20, 10, 40, 50)))[0]
    assert torch.allclose(image, grey.expand(-1, -1, -1, 3), atol=1e-6)


# Poses


def test_a_pose_tells_the_subject_and_is_aligned_alike():
    poses, target = pose((60, 20, 200)), (30, 40, 90, 180)
    picture, line_mask = render(poses, 300, 240, 4)
    image, report, _, moved, mask = run(picture, photo(200, 256), None, mask_of(200, 256, target), structure_pose=poses)
    (subject,) = subjects_of(poses[0], 300, 240)
    move = align(Box(*subject.box.tolist()), Box(*target))
    assert "from structure_pose" in report
    before, after = (np.array(frame[0]["people"][0][BODY]).reshape(-1, 3) for frame in (poses, moved))
    np.testing.assert_allclose(after[:, :2], before[:, :2] * move.scale + [move.x, move.y])
    # The drawing of the aligned pose lies on the aligned drawing of the pose.
    again = render(moved, 256, 200, 3)[0]
    assert float(((again[0].amax(-1) > 0.2) & (image[0].amax(-1) > 0.2)).sum()) > 0.5 * float(
        (image[0].amax(-1) > 0.2).sum()
    )
    assert torch.allclose(mask[0], project(line_mask[0, ..., None], move, (200, 256), torch.zeros(1))[..., 0], atol=0.2)


def test_a_pose_of_another_canvas_and_dialect():
    """Frames drawn into a picture of another size are fitted as Render Pose does; shares of the canvas are read too."""
    poses = pose((60, 20, 200))
    shares = copy.deepcopy(poses)
    values = np.array(shares[0]["people"][0][BODY]).reshape(-1, 3)
    values[:, :2] /= (300, 240)
    shares[0]["people"][0][BODY] = values.reshape(-1).tolist()
    picture = render(poses, 512, 512, 4)[0]
    mask = mask_of(200, 256, (30, 40, 90, 180))
    image, report, _, moved, _ = run(picture, photo(200, 256), None, mask, structure_pose=poses)
    other = run(picture, photo(200, 256), None, mask, structure_pose=shares)
    assert report == other[1] and torch.equal(image, other[0])
    again = render(moved, 256, 200, 2)[0]
    lines = image[0].amax(-1) > 0.3
    assert float(((again[0].amax(-1) > 0.2) & lines).sum()) > 0.3 * float(lines.sum())


def test_everybody_in_a_pose_is_one_group_for_one_subject():
    poses = pose((10, 20, 200), (120, 40, 180))
    picture = render(poses, 300, 240, 4)[0]
    _, report, _, moved, mask = run(picture, photo(200, 256), None, mask_of(200, 256, (30, 40, 90, 180)), None, poses)
    boxes = np.stack([subject.box for subject in subjects_of(poses[0], 300, 240)])
    move = align(Box(*boxes[:, :2].min(0), *boxes[:, 2:].max(0)), Box(30, 40, 90, 180))
    for before, after in zip(poses[0]["people"], moved[0]["people"], strict=True):
        points, new = (np.array(person[BODY]).reshape(-1, 3)[:, :2] for person in (before, after))
        np.testing.assert_allclose(new, points * move.scale + [move.x, move.y])
    assert len(mask) == 1 and "Subject" not in report


def test_poses_on_both_sides():
    own, target = pose((60, 20, 200)), pose((100, 60, 90), width=256, height=200)
    image, report, _, moved, mask = run(photo(240, 300), photo(200, 256), structure_pose=own, appearance_pose=target)
    expected = np.array(target[0]["people"][0][BODY]).reshape(-1, 3)
    np.testing.assert_allclose(np.array(moved[0]["people"][0][BODY]).reshape(-1, 3), expected, atol=1e-6)
    assert "from structure_pose" in report and "from appearance_pose" in report
    box = subjects_of(target[0], 256, 200)[0].box
    assert near(mask_box(mask[0]), box)  # a photo has but the box
    assert image.shape == (1, 200, 256, 3)


def test_a_pose_without_people_is_no_pose():
    structure = drawn(64, 64, (20, 10, 40, 50))
    mask = mask_of(64, 64, (2, 40, 12, 60))
    with_pose = run(structure, photo(64, 64), None, mask, structure_pose=pose())
    assert torch.equal(with_pose[0], run(structure, photo(64, 64), None, mask)[0]) and with_pose[3][0]["people"] == []


# Several subjects


def test_subjects_are_matched_in_the_order_of_the_cast():
    own = [(10, 20, 30, 60), (50, 10, 90, 70)]
    target = [(120, 50, 150, 100), (20, 40, 60, 160)]
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    masks = mask_of(80, 100, *own), mask_of(200, 180, *target)
    structure = (masks[0][..., None] * colours[:, None, None]).sum(dim=0)[None] + 0.1
    image, report, _, _, mask = run(structure, photo(200, 180), *masks)
    assert mask.shape == (2, 200, 180)
    for number in range(2):
        expected = moved_box(Box(*own[number]), align(Box(*own[number]), Box(*target[number])))
        assert near(mask_box(mask[number]), expected)
        x, y = round((expected.left + expected.right) / 2), round((expected.top + expected.bottom) / 2)
        assert torch.allclose(image[0, y, x], colours[number] + 0.1)
    assert "Subject 1: scale 1.25," in report and "Subject 2: scale 2," in report
    assert torch.allclose(image[0, 5, 5], torch.tensor(0.1))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_stands_lower_is_in_front(order):
    own = [(10, 20, 30, 60), (50, 20, 70, 60)]
    target = [(40, 30, 60, 70), (45, 50, 65, 90)]  # overlapping; the second stands lower
    masks = mask_of(80, 100, *(own[i] for i in order)), mask_of(100, 100, *(target[i] for i in order))
    structure = drawn(80, 100, own[0]) + 0.5 * drawn(80, 100, own[1])
    image, _, _, _, mask = run(structure, photo(100, 100), *masks)
    assert torch.allclose(image[0, 60, 50], torch.tensor(0.4))
    assert not (mask.sum(dim=0) > 1 + 1e-6).any()


def test_a_drawn_pose_is_cut_apart_along_its_people():
    poses = pose((150, 20, 200), (10, 20, 200))
    picture = render(poses, 300, 240, 3)[0]
    target = [(20, 40, 80, 180), (150, 20, 250, 190)]
    image, _, _, moved, mask = run(picture, photo(200, 256), None, mask_of(200, 256, *target), structure_pose=poses)
    assert len(mask) == 2 and [person["subject"] for person in moved[0]["people"]] == [0, 1]
    for number, box in enumerate(target):
        alone = render([{**poses[0], "people": [poses[0]["people"][number]]}], 300, 240, 3)[0]
        move = align(Box(*subjects_of(poses[0], 300, 240)[number].box.tolist()), Box(*box))
        expected = project(alone[0], move, (200, 256), torch.zeros(3))
        own = mask[number] > 0.5
        assert float((image[0] - expected).abs().amax(-1)[own].mean()) < 0.02
        bottom = (np.array(moved[0]["people"][number][BODY]).reshape(-1, 3)[:, 1]).max()
        assert box[1] < bottom < box[3]


def test_people_of_a_photo_need_masks_to_be_cut_apart():
    poses = pose((150, 20, 200), (10, 20, 200))
    masks = mask_of(200, 256, (20, 40, 80, 180), (150, 20, 250, 190))
    message = refused(photo(240, 300), photo(200, 256), None, masks, structure_pose=poses)
    assert message.startswith("structure: its background is not plain, so its people cannot be cut apart along")
    own = mask_of(240, 300, (150, 20, 290, 220), (10, 20, 150, 220))
    assert len(run(photo(240, 300), photo(200, 256), own, masks, structure_pose=poses)[3][0]["people"]) == 2


def test_cutting_apart_without_its_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    masks = mask_of(200, 256, (20, 40, 80, 180), (150, 20, 250, 190))
    with pytest.raises(ModuleNotFoundError, match="Anchor Align: the Python package cv2 is not installed"):
        run(
            drawn(240, 300, (20, 20, 60, 60)),
            photo(200, 256),
            None,
            masks,
            structure_pose=pose((150, 20, 200), (10, 20, 200)),
        )


# Batches


def test_a_batch_is_aligned_picture_by_picture():
    own, target = [(20, 10, 40, 50), (5, 20, 25, 60)], [(2, 30, 12, 60), (30, 10, 60, 62)]
    structures = torch.cat([drawn(64, 64, box) for box in own])
    appearances = torch.cat([photo(64, 64, seed=1), photo(64, 64, seed=2)])
    masks = mask_of(64, 64, *target)
    image, report, preview, poses, mask = run(structures, appearances, None, masks)
    assert len(image) == len(preview) == len(poses) == len(mask) == 2
    reports = report.split("\n\n")
    for number in range(2):
        alone = run(structures[[number]], appearances[[number]], None, masks[[number]])
        assert torch.equal(image[number], alone[0][0]) and torch.equal(mask[number], alone[4][0])
        assert torch.equal(preview[number], alone[2][0])
        assert reports[number] == f"Picture {number + 1}\n{alone[1]}"


def test_one_picture_goes_with_all_of_the_other_side():
    structures = torch.cat([drawn(64, 64, (20, 10, 40, 50)), drawn(64, 64, (5, 20, 25, 60))])
    appearance, mask = photo(48, 56), mask_of(48, 56, (2, 10, 12, 40))
    frames = [*pose((60, 20, 200)), *pose((10, 20, 200))]
    image, _, _, poses, _ = run(structures, appearance, None, mask)
    assert image.shape == (2, 48, 56, 3)
    turned = run(appearance, structures, mask, None)
    assert turned[0].shape == (2, 64, 64, 3) and turned[4].shape == (2, 64, 64)
    posed = run(structures, appearance, None, mask, structure_pose=frames)[3]
    assert [len(frame["people"]) for frame in posed] == [1, 1] and posed[0] != posed[1]
    assert all(frame["people"] == [] for frame in poses)


# SAM


def lit(box: Ints, height: int = 256, width: int = 256) -> torch.Tensor:
    picture = 0.4 * photo(height, width)
    picture[:, box[1] : box[3], box[0] : box[2]] += 0.5
    return picture


def test_sam_finds_the_subjects(bright_sam):
    own, target = (96, 48, 176, 208), (64, 80, 160, 240)
    image, report, _, _, mask = run(lit(own), lit(target), sam=bright_sam)
    assert report.count("from SAM") == 2 and "80 x 160 at (96, 48)" in report and "96 x 160 at (64, 80)" in report
    assert near(mask_box(mask[0]), moved_box(Box(*own), align(Box(*own), Box(*target))))
    assert image.shape == (1, 256, 256, 3)


def test_sam_looks_only_where_nothing_else_tells(bright_sam):
    target = (64, 80, 160, 240)
    report = run(drawn(64, 64, (20, 10, 40, 50)), lit(target), sam=bright_sam)[1]
    assert "from the plain background" in report and "from SAM" in report
    report = run(lit((96, 48, 176, 208)), lit(target), mask_of(256, 256, (9, 9, 20, 20)), sam=bright_sam)[1]
    assert "11 x 11 at (9, 9), from structure_mask" in report
    plain_appearance = run(drawn(64, 64, (20, 10, 40, 50)), drawn(256, 256, target), sam=bright_sam)[1]
    assert plain_appearance.count("from SAM") == 1


def test_sam_that_is_not_sure_is_one_sentence(tmp_path: Path):
    pytest.importorskip("segment_anything")
    torch.save(brightness_sam(quality=0.2).state_dict(), tmp_path / "unsure.pth")
    message = refused(drawn(64, 64, (20, 10, 40, 50)), lit((64, 80, 160, 240)), sam=load_sam(tmp_path / "unsure.pth"))
    assert message == "appearance: SAM is not sure of any subject in it; connect appearance_mask."


# Bad input


def test_a_mask_of_everything_runs_and_is_remarked():
    report = run(photo(64, 48), photo(80, 60), torch.ones(1, 64, 48), mask_of(80, 60, (9, 9, 30, 70)))[1]
    assert report.endswith(
        "Note: structure_mask covers the whole structure picture; was it meant to be inverted?"
    ) and report.startswith("structure box 48 x 64 at (0, 0)")
    ring = torch.ones(1, 64, 48)
    ring[:, 30, 20] = 0
    assert "Note" not in run(photo(64, 48), photo(80, 60), ring, mask_of(80, 60, (9, 9, 30, 70)))[1]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.zeros(1, 64, 48), "it is empty; paint the subject white."),
        (mask_of(64, 48, (3, 3, 9, 9), (0, 0, 0, 0)), "mask 2 of 2 is empty; paint the subject white."),
        (torch.ones(1, 64, 64), "it is 64x64, the picture 48x64; use a mask made from this picture (Load Image gives"),
        (torch.ones(2, 48, 64), "it is 64x48, the picture 48x64; use a mask"),
    ],
)
def test_bad_masks_are_one_sentence(side, mask, message):
    masks: list[Any] = [mask_of(64, 48, (1, 2, 9, 20))] * 2
    masks[side] = mask
    name = ("structure_mask", "appearance_mask")[side]
    assert refused(photo(64, 48), photo(64, 48, seed=1), *masks).startswith(f"{name}: {message}")


def test_an_empty_alpha_channel():
    clear = torch.cat([photo(64, 48), torch.zeros(1, 64, 48, 1)], dim=-1)
    assert refused(clear, photo(8, 8)) == "structure: it is empty; paint the subject white."


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {
                "structure_mask": mask_of(64, 48, (1, 2, 9, 20)),
                "appearance_mask": mask_of(80, 60, *[(1, 2, 9, 20)] * 2),
            },
            "structure_mask: the two pictures have different numbers of subjects, 1 by structure_mask and 2 by"
            " appearance_mask; give both one mask a subject, in the order of the cast.",
        ),
        (
            {
                "structure_mask": mask_of(64, 48, *[(1, 2, 9, 20)] * 2),
                "appearance_mask": mask_of(80, 60, *[(1, 2, 9, 20)] * 2),
                "structure_pose": pose((10, 10, 100), (50, 10, 100), (80, 10, 100)),
            },
            "structure_pose: 3 subjects are in it and 2 in the masks; give both the same, in the order of the cast.",
        ),
        (
            {
                "appearance_mask": mask_of(80, 60, *[(1, 2, 9, 20)] * 2),
                "structure_pose": pose((10, 10, 100), (50, 10, 100), (80, 10, 100)),
            },
            "structure_mask: the two pictures have different numbers of subjects, 3 by structure_pose and 2 by",
        ),
        ({"structure_pose": []}, "structure_pose: it is not a list of OpenPose frames; connect a pose detector or"),
        (
            {"structure_pose": pose((9, 9, 99)) * 2},
            "structure_pose: it has 2 frames for 1 pictures; give it one frame a picture.",
        ),
        (
            {
                "structure_mask": mask_of(64, 48, (1, 2, 9, 20)),
                "appearance_pose": [{**pose()[0], "people": [{BODY: [1.0] * 75}]}],
            },
            "appearance_pose: person 1 has 25 body keypoints, expected 18",
        ),
        ({}, "structure: its background is not plain, so nothing tells the subject; connect structure_mask or sam."),
        (
            {"structure_mask": mask_of(64, 48, (1, 2, 9, 20))},
            "appearance: its background is not plain, so nothing tells the subject; connect appearance_mask or sam.",
        ),
    ],
)
def test_bad_input_is_one_sentence(inputs, message):
    assert refused(photo(64, 48), photo(80, 60), **inputs).startswith(message)


def test_a_picture_of_one_colour_has_no_subject():
    assert refused(torch.zeros(1, 64, 48, 3), photo(80, 60), None, mask_of(80, 60, (1, 2, 9, 20))) == (
        "structure: there is no subject in it, for nothing stands out from its background; connect another picture or"
        " structure_mask."
    )


def test_batches_that_do_not_go_together():
    assert refused(photo(8, 8).repeat(2, 1, 1, 1), photo(8, 8).repeat(3, 1, 1, 1)) == (
        "structure: it holds 2 pictures, the other side 3; give both as many, or one of them a single one."
    )
    assert refused(
        drawn(64, 64, (9, 9, 20, 20)).repeat(3, 1, 1, 1), photo(64, 64), None, mask_of(64, 64, *[(1, 1, 9, 9)] * 2)
    ) == ("appearance_mask: 2 masks came for 1 pictures; in a batch every picture has one subject and one mask.")


SIZES = {  # height and width, and a box in it
    (16, 16): (4, 4, 12, 16),
    (8000, 32): (4, 3990, 28, 4014),
    (40, 8000): (7000, 4, 7024, 28),
    (8000, 48): (0, 0, 48, 8000),
}


@pytest.mark.parametrize("own", SIZES)
@pytest.mark.parametrize("target", SIZES)
def test_the_smallest_and_the_largest_pictures(own, target):
    boxes = [SIZES[own], SIZES[target]]
    image, _, preview, _, mask = run(photo(*own), photo(*target), mask_of(*own, boxes[0]), mask_of(*target, boxes[1]))
    assert image.shape == (1, *target, 3) and torch.isfinite(image).all()
    expected = moved_box(Box(*boxes[0]), align(*(Box(*box) for box in boxes)))
    if expected.width >= 2:
        assert near(mask_box(mask[0]), np.clip(expected, 0, [*target[::-1]] * 2))
    assert torch.isfinite(preview).all() and max(preview.shape) < 2000


def test_previews_show_every_box_in_its_colour():
    own = [(10, 20, 30, 60), (50, 10, 90, 70)]
    masks = mask_of(80, 100, *own)
    black = torch.zeros(1, 80, 100, 3)
    preview = run(black, black, masks, masks)[2][0]
    pixels = (preview.reshape(-1, 3) * 255).round().int()
    for colour in ((230, 159, 0), (86, 180, 233)):
        assert int((pixels == torch.tensor(colour)).all(dim=-1).sum()) > 2000


def test_the_contract():
    schema = EnsembleAnchorAlign.define_schema()
    assert schema.node_id == "EnsembleAnchorAlign" and schema.category == "ensemble/seal"
    names = ["structure", "appearance", "structure_mask", "appearance_mask", "sam"]
    assert [entry.id for entry in schema.inputs] == [*names, "structure_pose", "appearance_pose", "enabled"]
    assert [output.display_name for output in schema.outputs] == ["image", "report", "preview", "pose", "mask"]
    assert all(entry.tooltip for entry in schema.inputs) and schema.search_aliases[-1] == "ensemble"
