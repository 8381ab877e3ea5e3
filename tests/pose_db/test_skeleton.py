import numpy as np
import pytest

from comfyui_ensemble.pose_db.actions import load_actions, parse_action, parse_person, swap_sides
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, MIRRORED
from comfyui_ensemble.pose_db.reach import limb_columns, solve_limb
from comfyui_ensemble.pose_db.scene import solve_scene
from comfyui_ensemble.pose_db.skeleton import (
    ANGLE_INDEX,
    ANGLES,
    BODIES,
    LENGTH_INDEX,
    LENGTHS,
    SIDES,
    angle_limits,
    body_lengths,
    check_angles,
    forward,
    ground_gap,
)

FLIPPED = ("root_yaw", "root_roll", "trunk_bend", "trunk_twist", "neck_tilt", "neck_turn")
BODY_OF_POOL = {"child": "child", "toddler": "toddler"}


def random_angles(rng, count, flexible=False):
    low, high = angle_limits(flexible)
    return rng.uniform(low, high, (count, len(ANGLES)))


def lengths_of(bodies):
    return np.stack([body_lengths(body) for body in bodies])


def scipy_joints(angles, lengths):
    """The same skeleton written down again as one chain of scipy rotations a limb, for one person."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    a = dict(zip(ANGLES, angles, strict=True))
    size = dict(zip(LENGTHS, lengths, strict=True))
    pelvis = rotation.from_euler("YXZ", [a["root_yaw"], a["root_pitch"], -a["root_roll"]], degrees=True)
    half = rotation.from_euler(
        "YXZ", [a["trunk_twist"] / 2, a["trunk_flexion"] / 2, -a["trunk_bend"] / 2], degrees=True
    )
    chest = pelvis * half * half
    collar = (pelvis * half).apply([0, size["trunk"] / 2, 0]) + chest.apply([0, size["trunk"] / 2, 0])
    joints = {}
    for side, sign in (("left", 1), ("right", -1)):
        shrug = rotation.from_euler("Z", sign * a[f"{side}_shrug"], degrees=True)
        shoulder = collar + (chest * shrug).apply([sign * size["shoulder_half"], 0, 0])
        arm = chest * rotation.from_euler(
            "XZY",
            [
                -a[f"{side}_shoulder_flexion"],
                sign * a[f"{side}_shoulder_abduction"],
                -sign * a[f"{side}_shoulder_rotation"],
            ],
            degrees=True,
        )
        elbow = shoulder + arm.apply([0, -size["upper_arm"], 0])
        bent = arm * rotation.from_euler("X", -a[f"{side}_elbow_flexion"], degrees=True)
        hip = pelvis.apply([sign * size["hip_half"], 0, 0])
        leg = pelvis * rotation.from_euler(
            "XZY",
            [-a[f"{side}_hip_flexion"], sign * a[f"{side}_hip_abduction"], -sign * a[f"{side}_hip_rotation"]],
            degrees=True,
        )
        knee = hip + leg.apply([0, -size["thigh"], 0])
        shank = leg * rotation.from_euler("X", a[f"{side}_knee_flexion"], degrees=True)
        joints |= {
            f"{side}_shoulder": shoulder,
            f"{side}_elbow": elbow,
            f"{side}_wrist": elbow + bent.apply([0, -size["forearm"], 0]),
            f"{side}_hip": hip,
            f"{side}_knee": knee,
            f"{side}_ankle": knee + shank.apply([0, -size["shank"], 0]),
        }
    return joints


def test_forward_kinematics_equals_a_chain_of_scipy_rotations():
    rng = np.random.default_rng(0)
    bodies = [list(BODIES)[i % len(BODIES)] for i in range(40)]
    angles, lengths = random_angles(rng, 40, flexible=True), lengths_of(bodies)
    posture = forward(angles, lengths)
    for row in range(40):
        for name, expected in scipy_joints(angles[row], lengths[row]).items():
            np.testing.assert_allclose(posture.joint(name)[row], expected, atol=1e-9, err_msg=name)


def test_zero_angles_are_an_upright_stand_with_winters_heights():
    posture = forward(np.zeros((1, len(ANGLES))), lengths_of(["person"]))
    gap = ground_gap(posture)[0]
    height = body_lengths("person")[LENGTH_INDEX["height"]]
    heights = {name: (posture.joint(name)[0, 1] - gap) / height for name in KEYPOINT_INDEX}
    assert heights["left_ankle"] == pytest.approx(0.039, abs=1e-9)
    assert heights["left_knee"] == pytest.approx(0.285, abs=1e-9)
    assert heights["left_hip"] == pytest.approx(0.530, abs=1e-9)
    assert heights["left_shoulder"] == pytest.approx(0.818, abs=1e-9)
    assert heights["left_eye"] == pytest.approx(0.936, abs=0.003)
    assert posture.joint("left_shoulder")[0, 0] > 0 > posture.joint("right_shoulder")[0, 0]
    assert posture.joint("nose")[0, 2] > 0.05


@pytest.mark.parametrize(
    ("changes", "joint", "axis", "direction"),
    [
        ({"left_shoulder_flexion": 90}, "left_wrist", 2, 1),
        ({"left_shoulder_abduction": 90}, "left_wrist", 0, 1),
        ({"right_shoulder_abduction": 90}, "right_wrist", 0, -1),
        ({"left_hip_flexion": 60}, "left_knee", 2, 1),
        ({"left_knee_flexion": 90}, "left_ankle", 2, -1),
        ({"left_elbow_flexion": 90}, "left_wrist", 2, 1),
        ({"left_elbow_flexion": 90, "left_shoulder_rotation": 70}, "left_wrist", 0, -1),
        ({"trunk_flexion": 60}, "neck", 2, 1),
        ({"trunk_bend": 30}, "neck", 0, 1),
        ({"neck_turn": 80}, "nose", 0, 1),
        ({"root_yaw": 90}, "nose", 0, 1),
    ],
)
def test_signs_are_the_documented_ones(changes, joint, axis, direction):
    angles = np.zeros((2, len(ANGLES)))
    for name, value in changes.items():
        angles[1, ANGLE_INDEX[name]] = value
    posture = forward(angles, lengths_of(["person", "person"]))
    moved = posture.joint(joint)[1] - posture.joint(joint)[0]
    assert direction * moved[axis] > 0.04


def test_bones_keep_their_lengths():
    rng = np.random.default_rng(1)
    lengths = lengths_of(["woman"] * 20)
    posture = forward(random_angles(rng, 20), lengths)
    bones = {
        ("shoulder", "elbow"): "upper_arm",
        ("elbow", "wrist"): "forearm",
        ("hip", "knee"): "thigh",
        ("knee", "ankle"): "shank",
    }
    for (upper, lower), name in bones.items():
        for side in SIDES:
            length = np.linalg.norm(posture.joint(f"{side}_{upper}") - posture.joint(f"{side}_{lower}"), axis=1)
            np.testing.assert_allclose(length, lengths[:, LENGTH_INDEX[name]])


def test_mirrored_angles_give_mirrored_joints():
    rng = np.random.default_rng(2)
    angles = random_angles(rng, 10)
    mirrored = angles.copy()
    for name, index in ANGLE_INDEX.items():
        side, _, rest = name.partition("_")
        other = {"left": "right", "right": "left"}.get(side)
        mirrored[:, index] = angles[:, ANGLE_INDEX[f"{other}_{rest}"]] if other else angles[:, index]
        if name in FLIPPED:
            mirrored[:, index] *= -1
    lengths = lengths_of(["man"] * 10)
    expected = forward(angles, lengths).joints[:, list(MIRRORED)] * np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(forward(mirrored, lengths).joints, expected, atol=1e-12)


@pytest.mark.parametrize("name", ANGLES)
def test_an_angle_outside_its_limits_is_named(name):
    angles = np.zeros(len(ANGLES))
    check_angles(angles)
    _, high = angle_limits()
    angles[ANGLE_INDEX[name]] = high[ANGLE_INDEX[name]] + 1
    with pytest.raises(ValueError, match=name):
        check_angles(angles)


def test_an_angle_that_is_not_a_number_is_named():
    angles = np.zeros(len(ANGLES))
    angles[ANGLE_INDEX["left_elbow_flexion"]] = np.nan
    with pytest.raises(ValueError, match="left_elbow_flexion"):
        check_angles(angles)


@pytest.mark.parametrize("limb", ["left_arm", "right_arm", "left_leg", "right_leg"])
def test_inverse_kinematics_reaches_what_forward_kinematics_reached(limb):
    rng = np.random.default_rng(3)
    angles, lengths = random_angles(rng, 200), lengths_of(["person"] * 200)
    columns = limb_columns(limb)
    # A nearly folded or straight limb leaves the swivel undefined.
    angles[:, columns[3]] = rng.uniform(15, 125, 200)
    goal = forward(angles, lengths)
    side, kind = limb.split("_")
    root, middle, end = ("hip", "knee", "ankle") if kind == "leg" else ("shoulder", "elbow", "wrist")
    hint = goal.joint(f"{side}_{middle}") - goal.joint(f"{side}_{root}")
    solved, strain = solve_limb(goal, limb, goal.joint(f"{side}_{end}"), hint)
    assert strain.max() < 1e-6
    angles[:, columns] = solved
    np.testing.assert_allclose(forward(angles, lengths).joint(f"{side}_{end}"), goal.joint(f"{side}_{end}"), atol=1e-6)


def test_a_point_out_of_reach_is_approached_with_a_straight_arm():
    lengths = lengths_of(["person"])
    posture = forward(np.zeros((1, len(ANGLES))), lengths)
    shoulder = posture.joint("left_shoulder")
    angles, _ = solve_limb(posture, "left_arm", shoulder + np.array([[0.0, 0.0, 5.0]]), np.array([[0.0, -1.0, 0.0]]))
    full = np.zeros((1, len(ANGLES)))
    full[:, limb_columns("left_arm")] = angles
    arm = forward(full, lengths).joint("left_wrist") - shoulder
    reach = lengths[0, LENGTH_INDEX["upper_arm"]] + lengths[0, LENGTH_INDEX["forearm"]]
    np.testing.assert_allclose(arm, [[0, 0, reach]], atol=0.02)


def test_children_have_larger_heads_and_shorter_legs():
    shares = {
        body: body_lengths(body) / body_lengths(body)[LENGTH_INDEX["height"]] for body in ("person", "child", "toddler")
    }
    heads = [shares[body][LENGTH_INDEX["head"]] for body in ("person", "child", "toddler")]
    legs = [
        shares[body][LENGTH_INDEX["thigh"]] + shares[body][LENGTH_INDEX["shank"]]
        for body in ("person", "child", "toddler")
    ]
    assert heads == sorted(heads)
    assert legs == sorted(legs, reverse=True)


@pytest.fixture(scope="module")
def actions():
    return load_actions()


def test_every_authored_action_reaches_its_targets_within_the_limits(actions):
    for action in actions:
        pools = action.subjects if len(action.subjects) == len(action.people) else ["adult"] * len(action.people)
        bodies = [BODY_OF_POOL.get(pool, pool if pool in BODIES else "person") for pool in pools]
        angles = np.stack([person.angles for person in action.people])[None]
        scene = solve_scene(action.people, angles, lengths_of(bodies)[None], np.zeros((1, len(bodies), 3)))
        assert scene.misses.max() < 0.06, f"{action.id}: a hand or foot misses its target by {scene.misses.max():.2f} m"
        assert scene.strains.max() < 2, (
            f"{action.id}: a joint would need {scene.strains.max():.0f} degrees beyond its limits"
        )


def test_everybody_stands_on_the_ground_or_is_carried_or_jumps(actions):
    for action in actions:
        angles = np.stack([person.angles for person in action.people])[None]
        bodies = ["person"] * len(action.people)
        scene = solve_scene(action.people, angles, lengths_of(bodies)[None], np.zeros((1, len(bodies), 3)))
        for number, person in enumerate(action.people):
            lowest = scene.joints[0, number, :, 1].min()
            if person.ride is None:
                assert -0.02 < lowest - 1.7 * person.lift < 0.14, action.id


def test_pairs_that_touch_touch(actions):
    by_id = {action.id: action for action in actions}
    for name in ("shake_hands", "high_five", "walk_holding_hands", "stand_holding_hands_facing", "clapping_game"):
        action = by_id[name]
        angles = np.stack([person.angles for person in action.people])[None]
        scene = solve_scene(action.people, angles, lengths_of(["man", "woman"])[None], np.zeros((1, 2, 3)))
        wrists = [
            scene.joints[0, person][[KEYPOINT_INDEX["left_wrist"], KEYPOINT_INDEX["right_wrist"]]] for person in (0, 1)
        ]
        nearest = np.linalg.norm(wrists[0][:, None] - wrists[1][None], axis=-1).min()
        assert nearest < 0.2, f"{name}: {nearest:.2f} m"


def action_json(**changes):
    return {"id": "wave", "say": ["waving", "greeting"], "places": ["in a park"], "level": 1} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poses": {}}, "unknown key 'poses'"),
        ({"id": "Wave Hand"}, "snake_case"),
        ({"say": ["waving"]}, "two phrasings"),
        ({"level": 9}, "level"),
        ({"crops": ["head"]}, "crops 'head'"),
        ({"canvas": "round"}, "canvas 'round'"),
        ({"subjects": ["aliens"]}, "subjects 'aliens'"),
        ({"base": "fly"}, "no base pose 'fly'"),
        ({"pose": {"left_arm": [0, 0, 0]}}, "list of 4 numbers"),
        ({"pose": {"left_arm": [0, 0, 0, 170]}}, "left_elbow_flexion is 170.0 degrees"),
        ({"pose": {"left_hand": ["tail"]}}, "'tail' is not a point of the body"),
        ({"pose": {"left_hand": ["3.head"]}}, "numbered from 0 to 0"),
        ({"pose": {"left_hand": ["head", [0, 0, 0], "sideways"]}}, "'sideways' is not one of"),
        ({"pose": {"tail": [1]}}, "unknown key 'tail'"),
        ({"say": ["hugging {b}", "embracing {b}"]}, "1 people"),
    ],
)
def test_a_broken_action_says_what_is_wrong(changes, message):
    parse_action("gestures", action_json(), {"stand": {}})
    with pytest.raises(ValueError, match=message):
        parse_action("gestures", action_json(**changes), {"stand": {}})


def test_a_mirrored_base_pose_exchanges_the_sides():
    bases = {
        "step": {"left_leg": [30, 5, 10, 20], "trunk": [5, 10, 15], "left_hand": ["right_hip", [0, 0, 0.1], "out"]}
    }
    person = parse_person({"base": "step", "pose": {"mirror": True}}, bases, 1)
    np.testing.assert_allclose(person.angles[limb_columns("right_leg")], [30, 5, 10, 20])
    np.testing.assert_allclose(
        person.angles[[ANGLE_INDEX[f"trunk_{n}"] for n in ("flexion", "bend", "twist")]], [5, -10, -15]
    )
    assert (person.reaches[0].limb, person.reaches[0].anchor) == ("right_arm", "left_hip")


def test_swap_sides():
    assert (
        swap_sides("raising the left arm and the right leg upright") == "raising the right arm and the left leg upright"
    )
