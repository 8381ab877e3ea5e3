import re
from collections import Counter

import numpy as np
import pytest

from comfyui_ensemble.pose_db.actions import Action, load_actions, swap_sides
from comfyui_ensemble.pose_db.builder import DEFAULT_OUTPUT, build_action, build_database, build_scene
from comfyui_ensemble.pose_db.database import load_database, save_database
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX
from comfyui_ensemble.pose_db.variation_axes import MANNERS, SUBJECT_POOLS
from comfyui_ensemble.pose_db.variations import choose_variations

WORDS_FOR_PEOPLE = {"two": 2, "three": 3}
CHILD = re.compile(r"\b(child|boy|girl|toddler)\b")
ADULT = re.compile(r"\b(man|woman|person)\b")


@pytest.fixture(scope="module")
def actions():
    return load_actions()


@pytest.fixture(scope="module")
def bundled():
    return load_database(DEFAULT_OUTPUT)


@pytest.fixture(scope="module")
def rebuilt():
    return build_database(seed=0)


@pytest.fixture(scope="module")
def scenes(actions):
    """Every action's variations with their people in space."""
    return [
        (action, variations, build_scene(action, variations, 0)[0])
        for action, variations in ((action, choose_variations(action, 0)) for action in actions)
    ]


def entries(database, text=None, camera=None):
    """Index, prompt, tags and people of entries whose prompt or camera matches."""
    for index, (prompt, tags) in enumerate(zip(database.prompts, database.tags, strict=True)):
        if (text is None or re.search(text, prompt)) and (camera is None or camera in tags["camera"]):
            yield index, prompt, tags, database.people(index)


def of(person, name):
    return person[KEYPOINT_INDEX[name]]


def test_counts(bundled, actions):
    people = Counter(len(action.people) for action in actions)
    assert len(actions) >= 320
    assert people[2] >= 50
    assert people[3] >= 20
    assert len(bundled) >= 9000
    assert len(bundled) == 30 * len(actions)
    assert DEFAULT_OUTPUT.stat().st_size < 20e6


def test_all_prompts_are_distinct_and_whole_sentences(bundled):
    assert len(set(bundled.prompts)) == len(bundled)
    assert len({prompt.lower() for prompt in bundled.prompts}) == len(bundled)
    for prompt in bundled.prompts:
        assert not re.search(r"[{}]|,,|  | ,|,$|\ba [aeiou]\w+ (man|woman)", prompt), prompt


def test_every_keypoint_is_inside_its_canvas_or_not_there(bundled):
    assert np.isfinite(bundled.keypoints).all()
    canvases = np.repeat(bundled.canvases, np.diff(bundled.person_offsets), axis=0)
    there = bundled.keypoints[..., 2] > 0
    positions = bundled.keypoints[..., :2]
    assert ((positions >= 0) & (positions <= canvases[:, None])).all()
    assert (positions[~there] == 0).all()
    assert there.sum(axis=1).min() >= 6


def test_people_of_tag_pose_and_prompt_agree(bundled):
    for index, prompt, tags, people in entries(bundled):
        assert len(people) == tags["people"] == len(tags["subjects"]), index
        for word, count in WORDS_FOR_PEOPLE.items():
            if re.search(rf"\b{word} (people|men|women|boys|girls|children|friends|athletes|colleagues)\b", prompt):
                assert count in (tags["people"], tags["people"] - 1), prompt


def test_the_bundled_file_is_what_the_builder_makes(bundled, rebuilt):
    assert bundled.prompts == rebuilt.prompts
    assert bundled.tags == rebuilt.tags
    np.testing.assert_array_equal(bundled.canvases, rebuilt.canvases)
    np.testing.assert_array_equal(bundled.person_offsets, rebuilt.person_offsets)
    # Half a step of storage: what another processor's last bits may change.
    np.testing.assert_allclose(bundled.keypoints, rebuilt.keypoints, atol=0.07)
    assert (bundled.keypoints == rebuilt.keypoints).mean() > 0.999
    assert bundled.info["seed"] == "0"


def test_embeddings_are_of_unit_length(bundled):
    np.testing.assert_allclose(np.linalg.norm(bundled.embeddings, axis=1), 1, atol=2e-3)


def test_two_builds_are_the_same_bytes_and_the_order_does_not_matter(tmp_path, actions):
    few = [actions[i] for i in (0, 40, 200, -1)]
    files = []
    for number in range(2):
        path = tmp_path / f"{number}" / "poses.safetensors"
        path.parent.mkdir()
        save_database(build_database(7, actions=few, count=5, name="poses"), path)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    there, back = build_database(7, actions=few, count=5), build_database(7, actions=few[::-1], count=5)
    assert sorted(there.prompts) == sorted(back.prompts)
    by_prompt = {prompt: back.people(index) for index, prompt in enumerate(back.prompts)}
    for index, prompt in enumerate(there.prompts):
        np.testing.assert_array_equal(there.people(index), by_prompt[prompt])


def test_another_seed_gives_other_poses(actions):
    first, second = build_action(actions[0], 0, 4)[1], build_action(actions[0], 1, 4)[1]
    assert not np.allclose(first, second)


def test_every_action_has_its_plain_prompt_first(bundled, actions):
    says = {action.id: action.say[0] for action in actions}
    for _, prompt, tags, _ in entries(bundled):
        if tags["variation"] == 0:
            assert tags["camera"] == "" and tags["environment"] == ""
            if "{b}" not in says[tags["action"]]:
                assert says[tags["action"]].rstrip(",") in prompt


def test_tags_are_words_of_the_prompt(bundled):
    for _, prompt, tags, _ in entries(bundled):
        assert tags["camera"] in prompt
        assert tags["environment"] in prompt
        assert 1 <= tags["difficulty"] <= 5


def test_seen_from_behind_the_face_is_hidden_and_left_is_left(bundled):
    found = 0
    for camera in ("from behind", "back view"):
        for _, prompt, _, people in entries(bundled, camera=camera):
            for person in people:
                assert of(person, "nose")[2] < 0.5, prompt
                assert of(person, "left_shoulder")[0] < of(person, "right_shoulder")[0], prompt
                found += 1
    assert found > 300


def test_seen_from_the_front_left_is_right(bundled):
    for camera in ("from the front", "front view"):
        for _, prompt, tags, people in entries(bundled, camera=camera):
            if tags["people"] == 1 and of(people[0], "left_shoulder")[2] and of(people[0], "right_shoulder")[2]:
                assert of(people[0], "left_shoulder")[0] > of(people[0], "right_shoulder")[0], prompt


@pytest.mark.parametrize(("side", "direction"), [("left", -1), ("right", 1)])
def test_seen_from_a_side_the_far_shoulder_is_behind(bundled, side, direction):
    far = {"left": "right", "right": "left"}[side]
    turned = []
    for _, _, _, people in entries(bundled, camera=f"from the {side} side"):
        person = people[0]
        turned.append(direction * (of(person, "nose")[0] - of(person, "neck")[0]) > 0)
        assert of(person, f"{far}_ear")[2] < 0.5 or of(person, f"{side}_ear")[2] > 0.5
    assert len(turned) > 100
    assert np.mean(turned) > 0.95


def test_crops_show_what_they_say(bundled):
    for _, prompt, _, people in entries(bundled, camera="full body"):
        assert (people[..., 2] > 0).all(), prompt
    for _, prompt, _, people in entries(bundled, camera="wide shot"):
        assert (people[..., 2] > 0).all(), prompt
    for words in ("waist up", "waist-up"):
        for _, prompt, _, people in entries(bundled, camera=words):
            for person in people:
                assert of(person, "left_ankle")[2] == 0 and of(person, "right_ankle")[2] == 0, prompt
                assert of(person, "neck")[2] > 0, prompt


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_raised_arm_is_raised(scenes, side):
    words = re.compile(rf"(raising the {side} (arm|hand)|with the {side} arm raised|the {side} (arm|hand) (up|raised))")
    found = 0
    for _, variations, scene in scenes:
        for row, variation in enumerate(variations):
            if words.search(variation.prompt) and len(variation.subjects) == 1 and "forearm" not in variation.prompt:
                wrist = scene.joints[row, 0, KEYPOINT_INDEX[f"{side}_wrist"]]
                shoulder = scene.joints[row, 0, KEYPOINT_INDEX[f"{side}_shoulder"]]
                assert wrist[1] > shoulder[1], variation.prompt
                found += 1
    assert found > 30


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_arm_straight_up_is_above_the_shoulder_in_the_picture(bundled, side):
    found = 0
    for _, prompt, tags, people in entries(bundled, rf"({side} arm raised|raising the {side} arm straight up)"):
        if tags["action"] == "left_arm_raised":
            assert of(people[0], f"{side}_wrist")[1] < of(people[0], f"{side}_shoulder")[1], prompt
            found += 1
    assert found >= 5


@pytest.mark.parametrize(("words", "sign"), [("to the left", 1), ("to the right", -1)])
def test_looking_to_a_side_turns_the_head(scenes, words, sign):
    found = 0
    for _, variations, scene in scenes:
        for row, variation in enumerate(variations):
            if variation.manner is not None and variation.manner.words == f"while looking {words}":
                left = scene.head_frame[row, 0, :, 2]
                assert sign * left[0] > 0.4, variation.prompt
                found += 1
    assert found > 10


def test_children_are_shorter_than_adults_in_the_same_picture(scenes):
    found = 0
    for _, variations, scene in scenes:
        for row, variation in enumerate(variations):
            words = [subject.words for subject in variation.subjects]
            thighs = np.linalg.norm(
                scene.joints[row, :, KEYPOINT_INDEX["left_hip"]] - scene.joints[row, :, KEYPOINT_INDEX["left_knee"]],
                axis=-1,
            )
            children = [
                thigh for thigh, who in zip(thighs, words, strict=True) if CHILD.search(who) and "teen" not in who
            ]
            adults = [thigh for thigh, who in zip(thighs, words, strict=True) if ADULT.search(who)]
            if children and adults:
                assert max(children) < 0.9 * min(adults), variation.prompt
                found += 1
    assert found > 50


def test_hands_of_a_group_meet(scenes):
    names = ("shake_hands", "high_five", "walk_holding_hands", "stand_holding_hands_facing", "clapping_game", "waltz")
    for action, variations, scene in scenes:
        if action.id not in names:
            continue
        wrists = scene.joints[:, :, [KEYPOINT_INDEX["left_wrist"], KEYPOINT_INDEX["right_wrist"]]]
        gaps = np.linalg.norm(wrists[:, 0, :, None] - wrists[:, 1, None], axis=-1).min(axis=(1, 2))
        for gap, variation in zip(gaps, variations, strict=True):
            assert gap < 0.22, f"{variation.prompt}: {gap:.2f} m"


def test_two_who_shake_hands_face_each_other(scenes):
    scene = next(scene for action, _, scene in scenes if action.id == "shake_hands")
    facing = scene.head_frame[:, :, :, 2] * np.array([1.0, 0.0, 1.0])
    facing /= np.linalg.norm(facing, axis=-1, keepdims=True)
    assert (np.einsum("ni,ni->n", facing[:, 0], facing[:, 1]) < -0.8).all()
    apart = scene.joints[:, 1, KEYPOINT_INDEX["neck"]] - scene.joints[:, 0, KEYPOINT_INDEX["neck"]]
    assert (np.einsum("ni,ni->n", facing[:, 0], apart) > 0).all()


def test_seated_people_have_their_hips_at_seat_height(scenes):
    for action, _, scene in scenes:
        if action.id in ("sit_on_chair", "type_on_laptop", "sit_side_by_side", "dine_opposite"):
            hip, knee, ankle = (
                scene.joints[..., KEYPOINT_INDEX[f"left_{name}"], 1] for name in ("hip", "knee", "ankle")
            )
            assert (np.abs(hip - knee) < 0.1).all()
            assert (knee - ankle > 0.2).all()


def test_sides_in_the_words_and_in_the_pose_are_mirrored_together(actions):
    action = next(action for action in actions if action.id == "left_arm_raised")
    variations = choose_variations(action, 0)
    scene = build_scene(action, variations, 0)[0]
    for row, variation in enumerate(variations):
        side = "right" if variation.mirrored else "left"
        assert f"{side} arm" in variation.prompt
        assert scene.joints[row, 0, KEYPOINT_INDEX[f"{side}_wrist"], 1] > scene.head[row, 0, 1]
    assert {variation.mirrored for variation in variations} == {True, False}


def test_phrasings_do_not_use_left_or_right_for_anything_but_a_side(actions: list[Action]):
    for action in actions:
        for text in action.say:
            assert swap_sides(swap_sides(text)) == text
            assert not re.search(r"\b(all right|right away|right now|be left|are left)\b", text), text


def test_pools_and_manners_have_distinct_words():
    for pool in SUBJECT_POOLS.values():
        assert len({subject.words for subject in pool}) == len(pool)
    assert len({manner.words for manner in MANNERS}) == len(MANNERS)
