import numpy as np
import pytest

from comfyui_ensemble.pose_db.camera import View, _sight_distance, camera_axes, hidden, photograph, project
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, KEYPOINTS
from comfyui_ensemble.pose_db.scene import PersonPose, Reach, solve_scene
from comfyui_ensemble.pose_db.skeleton import ANGLE_INDEX, ANGLES, body_lengths

FACE = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")


def stand(places=((0.0, 0.0),), reaches=(), body="person", **angles):
    people = []
    for place in places:
        row = np.zeros(len(ANGLES))
        for name, value in angles.items():
            row[ANGLE_INDEX[name]] = value
        people.append(PersonPose(row, tuple(reaches), 0.0, place, None, True))
    lengths = np.stack([body_lengths(body) for _ in people])[None]
    return solve_scene(people, np.stack([p.angles for p in people])[None], lengths, np.zeros((1, len(people), 3)))


def view(azimuth=0.0, elevation=0.0, distance=4.0, crop="full", canvas=(768, 1024), margin=0.08):
    return View(
        np.array([float(azimuth)]),
        np.array([float(elevation)]),
        np.array([distance]),
        [crop],
        np.array([canvas]),
        np.array([margin]),
    )


def picture(scene, **camera):
    shape = scene.joints.shape[:3]
    return photograph(scene, view(**camera), np.full(shape, 0.9), np.full(shape, 0.25))[0]


def named(person, name):
    return person[KEYPOINT_INDEX[name]]


def test_projection_by_hand():
    # A camera at (0, 1, 5) that looks along -z sees (1, 2, 1) four metres away, 1 to the right and 1 up.
    axes = camera_axes(np.array([0.0]), np.array([0.0]))
    flat = project(np.array([[[1.0, 2.0, 1.0]]]), np.array([[0.0, 1.0, 5.0]]), axes)
    np.testing.assert_allclose(flat, [[[0.25, -0.25]]])


def test_projection_from_the_side_and_above_by_hand():
    # From the left side (azimuth 90) the camera's right is -z: a person's front is on the left of the picture.
    axes = camera_axes(np.array([90.0]), np.array([0.0]))
    flat = project(np.array([[[0.0, 0.0, 1.0]]]), np.array([[4.0, 0.0, 0.0]]), axes)
    np.testing.assert_allclose(flat, [[[-0.25, 0.0]]], atol=1e-12)
    # Straight from above the camera's down is +z.
    axes = camera_axes(np.array([0.0]), np.array([90.0]))
    flat = project(np.array([[[0.0, 0.0, 1.0]]]), np.array([[0.0, 4.0, 0.0]]), axes)
    np.testing.assert_allclose(flat, [[[0.0, 0.25]]], atol=1e-12)


def test_a_point_behind_the_camera_is_an_error():
    with pytest.raises(ValueError, match="behind the camera"):
        project(np.array([[[0.0, 0.0, 9.0]]]), np.array([[0.0, 0.0, 5.0]]), camera_axes(np.zeros(1), np.zeros(1)))


def test_left_is_on_the_right_of_a_front_view_and_on_the_left_from_behind():
    front, back = picture(stand())[0], picture(stand(), azimuth=180)[0]
    assert named(front, "left_shoulder")[0] > named(front, "right_shoulder")[0]
    assert named(back, "left_shoulder")[0] < named(back, "right_shoulder")[0]


def test_the_face_is_seen_from_the_front_and_hidden_from_behind():
    front, back = picture(stand())[0], picture(stand(), azimuth=180)[0]
    assert all(named(front, name)[2] > 0.5 for name in FACE)
    assert all(named(back, name)[2] < 0.5 for name in ("nose", "right_eye", "left_eye"))


def test_in_profile_the_far_side_is_hidden():
    left = picture(stand(), azimuth=90)[0]
    assert named(left, "left_ear")[2] > 0.5 > named(left, "right_ear")[2]
    assert named(left, "left_eye")[2] > 0.5 > named(left, "right_eye")[2]
    assert named(left, "left_shoulder")[2] > 0.5 > named(left, "right_shoulder")[2]
    assert named(left, "nose")[0] < named(left, "left_ear")[0]


def test_a_hand_behind_the_back_is_hidden_and_one_in_front_is_not():
    behind = Reach("left_arm", "pelvis", None, (0.0, 0.08, -0.1), (0.4, -0.4, -1.0))
    before = Reach("right_arm", "pelvis", None, (0.0, 0.08, 0.12), (1.0, 0.0, 0.0))
    person = picture(stand(reaches=(behind, before)))[0]
    assert named(person, "left_wrist")[2] < 0.5 < named(person, "right_wrist")[2]


def test_somebody_in_front_hides_somebody_behind():
    scene = stand(places=((0.0, 0.6), (0.0, -0.6)))
    near, far = picture(scene, canvas=(1024, 1024))
    assert (near[:, 2] > 0.5).all()
    assert named(far, "left_hip")[2] < 0.5


def test_a_full_body_picture_holds_every_keypoint_and_a_margin():
    person = picture(stand(left_shoulder_abduction=90), margin=0.1, azimuth=30, elevation=20)[0]
    assert (person[:, 2] > 0).all()
    assert person[:, 0].min() >= 0.1 * 768 - 1e-6
    assert person[:, 1].max() <= 0.9 * 1024 + 1e-6


def test_from_the_waist_up_knees_and_ankles_are_outside():
    person = picture(stand(), crop="waist")[0]
    for name in KEYPOINTS:
        if name.endswith("wrist"):
            continue  # hanging hands are at the very edge
        outside = name.endswith(("knee", "ankle"))
        assert (named(person, name)[2] == 0) == outside, name
        if outside:
            np.testing.assert_array_equal(named(person, name), 0)


def test_from_the_knees_up_only_ankles_are_outside():
    person = picture(stand(), crop="knees")[0]
    assert [name for name in KEYPOINTS if named(person, name)[2] == 0] == ["right_ankle", "left_ankle"]


def test_a_low_camera_stays_above_the_ground_and_makes_legs_longer():
    low, level = picture(stand(), elevation=-60, distance=3.0)[0], picture(stand(), distance=3.0)[0]

    def leg_share(person):
        leg = named(person, "left_ankle")[1] - named(person, "left_hip")[1]
        return leg / (named(person, "left_ankle")[1] - named(person, "nose")[1])

    assert leg_share(low) > leg_share(level) + 0.01


def test_nearer_people_are_larger():
    near, far = picture(stand(places=((-0.5, 0.8), (0.5, -0.8))), canvas=(1024, 1024))

    def height(person):
        return named(person, "left_ankle")[1] - named(person, "nose")[1]

    assert height(near) > 1.2 * height(far)


def test_mirroring_a_scene_mirrors_its_picture():
    scene = stand(left_shoulder_abduction=120, right_elbow_flexion=90, neck_turn=40)
    mirrored = scene.mirrored(np.array([True]))
    plain, flipped = picture(scene, azimuth=25)[0], picture(mirrored, azimuth=-25)[0]
    for name in KEYPOINTS:
        other = name.replace("left", "right") if "left" in name else name.replace("right", "left")
        np.testing.assert_allclose(named(flipped, other)[0], 768 - named(plain, name)[0], atol=1e-6)
        np.testing.assert_allclose(named(flipped, other)[1:], named(plain, name)[1:], atol=1e-6)
    np.testing.assert_array_equal(scene.mirrored(np.array([False])).joints, scene.joints)


def test_sight_distance_equals_brute_force():
    rng = np.random.default_rng(0)
    points, position = rng.normal(size=(1, 5, 3)), rng.normal(size=(1, 3)) + 4
    start, end = rng.normal(size=(1, 4, 3)), rng.normal(size=(1, 4, 3))
    distance, before = _sight_distance(points, position, start, end)
    steps = np.linspace(0, 1, 1501)
    for k in range(5):
        sight = position[0] + steps[:, None] * (points[0, k] - position[0])
        for c in range(4):
            core = start[0, c] + steps[:, None] * (end[0, c] - start[0, c])
            gaps = np.linalg.norm(sight[:, None] - core[None], axis=-1)
            nearest = np.unravel_index(gaps.argmin(), gaps.shape)[0]
            assert distance[0, k, c] == pytest.approx(gaps.min(), abs=2e-3)
            expected = (1 - steps[nearest]) * np.linalg.norm(points[0, k] - position[0])
            assert before[0, k, c] == pytest.approx(expected, abs=2e-2)


def test_nothing_hides_itself_in_a_plain_front_view():
    scene = stand()
    assert not hidden(scene, np.array([[0.0, 1.0, 5.0]])).any()
