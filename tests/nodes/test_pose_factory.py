"""The pose factory's nodes, alone and as a list of pictures on a real server."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import cast

import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io

from comfyui_ensemble.models_info.registry import (
    OPENPOSE,
    POSE_DATABASES,
    TINY_FLUX,
    TINY_VAE,
    MissingModelError,
    find_minilm,
)
from comfyui_ensemble.nodes import pose_factory
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.pose_factory import (
    EnsembleAlignmentScore,
    EnsemblePoseDatabaseAdd,
    EnsemblePoseDatabaseSave,
    EnsemblePoseExtract,
    EnsemblePoseQuality,
    EnsemblePromptVariations,
)
from comfyui_ensemble.pose_db.database import PoseEntry, append_entries, empty_database, load_database, save_database
from comfyui_ensemble.pose_db.keypoints import LIMBS, frame_from_people
from comfyui_ensemble.pose_db.openpose import body_network, find_people
from comfyui_ensemble.pose_db.retriever import PoseRetriever
from comfyui_ensemble.pose_db.skeleton import ANGLES, body_lengths, forward
from devtools.server import ComfyServer

SIZE = 256
LISTS = {"attributes": "old\nyoung", "environments": "in a park\non a stage\n", "cameras": ""}


def standing(people: int = 1) -> np.ndarray:
    """Upright people side by side on a square canvas, (P, 18, 3)."""
    joints = forward(np.zeros((1, len(ANGLES))), body_lengths("person")[None]).joints[0]
    joints *= 0.7 * SIZE / np.ptp(joints[:, 1])
    result = np.full((people, 18, 3), 0.9)
    result[..., 0] = SIZE * (np.arange(people)[:, None] + 0.5) / people + joints[:, 0]
    result[..., 1] = SIZE / 2 - joints[:, 1] + (joints[:, 1].min() + joints[:, 1].max()) / 2
    return result


def pose(people: int = 1) -> list[dict]:
    return [frame_from_people(standing(people), SIZE, SIZE)]


@pytest.fixture
def retriever() -> PoseRetriever:
    return PoseRetriever(empty_database("poses"), find_minilm()).extended(
        [PoseEntry("a man standing", standing(), (SIZE, SIZE))]
    )


def outputs(made: io.NodeOutput) -> tuple:
    assert made.result is not None
    return made.result


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith(".") and "\n" not in text
    return text


# Prompt Variations


def test_variations_are_a_list():
    prompts = outputs(EnsemblePromptVariations.execute("a man waving", **LISTS, count=4, seed=1))[0]
    assert sorted(prompts) == [
        "a young man waving in a park",
        "a young man waving on a stage",
        "an old man waving in a park",
        "an old man waving on a stage",
    ]
    assert EnsemblePromptVariations.OUTPUT_IS_LIST == [True]


def test_variations_say_what_is_wrong():
    with pytest.raises(InputError) as caught:
        EnsemblePromptVariations.execute("a man waving", **LISTS, count=5, seed=1)
    assert "Prompt Variations, count: the lists make 4 different prompts, 5 are asked for" in one_sentence(caught.value)
    with pytest.raises(InputError, match="Prompt Variations, action: it is empty; write what the people do"):
        EnsemblePromptVariations.execute(" ", **LISTS, count=1, seed=1)
    assert EnsemblePromptVariations.validate_inputs(action=None) is True
    assert "it is empty" in str(EnsemblePromptVariations.validate_inputs(action="\n"))


# Alignment Score


def test_score_and_acceptance():
    assert outputs(EnsembleAlignmentScore.execute(0.9, 0.8, 0.5)) == (pytest.approx(0.78), True)
    assert outputs(EnsembleAlignmentScore.execute(0.9, 0.8, 0.5, "1, 1, 2", 0.7)) == (pytest.approx(0.675), False)
    answer = 'Fine.\n{"subject": 10, "interaction": 5, "detail": 0}'
    assert outputs(EnsembleAlignmentScore.execute(0, 0, 0, threshold=0.6, answer=answer)) == (pytest.approx(0.6), True)


@pytest.mark.parametrize(
    "inputs, problem",
    [
        ({"subject": float("nan")}, "Alignment Score, subject: it is nan; give a rating between 0 and 1."),
        ({"detail": 7.0}, "Alignment Score, detail: it is 7; give a rating between 0 and 1."),
        ({"weights": "1, 2"}, "Alignment Score, weights: '1, 2' is not three weights; write"),
        ({"answer": "a nice picture"}, "Alignment Score, answer: the answer gives no rating for subject"),
    ],
)
def test_ratings_that_are_none(inputs, problem):
    with pytest.raises(InputError) as caught:
        EnsembleAlignmentScore.execute(**({"subject": 1.0, "interaction": 1.0, "detail": 1.0} | inputs))
    assert problem in one_sentence(caught.value)


def test_weights_are_checked_before_the_run():
    assert EnsembleAlignmentScore.validate_inputs(weights="2, 2, 1") is True
    assert EnsembleAlignmentScore.validate_inputs(weights=None) is True
    assert "is not three weights" in str(EnsembleAlignmentScore.validate_inputs(weights="x"))


# Check Pose


def test_quality_gives_the_pose_back_as_it_was():
    given = pose()
    result = outputs(EnsemblePoseQuality.execute(given, "a man waving"))
    assert result[0] is given and given == pose()
    assert result[1:] == (True, "Passed: 1 person.")


def test_quality_reports_every_picture():
    result = outputs(EnsemblePoseQuality.execute([*pose(), *pose(2), *pose(0)], "a man waving"))
    assert result[1] is False
    assert result[2].splitlines() == [
        "Picture 1. Passed: 1 person.",
        "Picture 2. Rejected:",
        "- the picture has 2 people, the prompt 1",
        "Picture 3. Rejected:",
        "- nobody is in the picture",
    ]
    assert outputs(EnsemblePoseQuality.execute(pose(2), "a man waving", people=2))[1] is True
    assert outputs(EnsemblePoseQuality.execute(pose(), min_confidence=0.95))[1] is False


@pytest.mark.parametrize(
    "given, problem",
    [
        ([], "Check Pose, pose: it is not a list of OpenPose frames; connect"),
        ([{"people": []}], "Check Pose, pose: a frame lacks people, canvas_width or canvas_height"),
        (
            [{"people": [{"pose_keypoints_2d": [1.0] * 51}], "canvas_width": 9, "canvas_height": 9}],
            "person 1 has 17 body keypoints",
        ),
        (
            [{"people": [{"pose_keypoints_2d": [float("nan")] * 54}], "canvas_width": 9, "canvas_height": 9}],
            "holds a number that is not finite",
        ),
    ],
)
def test_poses_that_are_none(given, problem):
    with pytest.raises(InputError) as caught:
        EnsemblePoseQuality.execute(given)
    assert problem in one_sentence(caught.value)


# Add to Pose Database


def add(retriever: PoseRetriever, poses, prompts, **more) -> PoseRetriever:
    return outputs(EnsemblePoseDatabaseAdd.execute([retriever], poses, prompts, **more))[0]


def test_added_poses_are_found_and_the_database_given_is_untouched(retriever):
    grown = add(retriever, [pose(2), pose()], ["two people dancing", "an old woman waving"], tags=["Camera: front"])
    assert len(retriever.database) == 1 and len(grown.database) == 3
    match = grown.search("two dancers", 1)[0]
    assert grown.database.prompts[match.entry] == "two people dancing"
    np.testing.assert_allclose(grown.database.people(match.entry), standing(2), atol=1e-4)
    assert grown.database.tags[1] == {"people": 2, "camera": "front"}
    np.testing.assert_allclose(np.linalg.norm(grown.database.embeddings, axis=1), 1, atol=1e-5)


def test_what_did_not_pass_is_left_out(retriever):
    poses, prompts = [pose(), pose(0), pose()], ["a man", "nobody", "a woman"]
    grown = add(retriever, poses, prompts, passed=[True, False, True], accepted=[True, True, False])
    assert grown.database.prompts == ["a man standing", "a man"]
    assert add(retriever, poses, prompts, passed=[False]) is retriever


def test_a_batch_of_frames_shares_its_prompt(retriever):
    grown = add(retriever, [pose() + pose(2)], ["a scene"])
    assert grown.database.prompts[1:] == ["a scene", "a scene"]
    assert [len(grown.database.people(row)) for row in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    "poses, prompts, more, problem",
    [
        ([pose()], [" "], {}, "Add to Pose Database, prompt: it is empty; write the words"),
        ([pose(0)], ["a man"], {}, "Add to Pose Database, pose: nobody is in it; connect passed of Check Pose"),
        ([pose()], ["a man"], {"tags": ["camera"]}, "Add to Pose Database, tags: 'camera' is not a note"),
        ([[]], ["a man"], {}, "Add to Pose Database, pose: it is not a list of OpenPose frames"),
    ],
)
def test_what_cannot_be_added(retriever, poses, prompts, more, problem):
    with pytest.raises(InputError) as caught:
        add(retriever, poses, prompts, **more)
    assert problem in one_sentence(caught.value)


def test_keypoints_outside_the_canvas_and_large_canvases_fit_the_file(tmp_path):
    people = standing() * [100, 100, 1]  # on a canvas of 25,600 pixels
    people[0, 0, :2] = -50, 20
    grown = append_entries(
        empty_database("x"), [PoseEntry("a man", people, (25_600, 25_600))], np.full((1, 384), 384**-0.5)
    )
    save_database(grown, tmp_path / "x.safetensors")
    loaded = load_database(tmp_path / "x.safetensors")
    assert loaded.canvases.tolist() == [[4095, 4095]]
    assert loaded.people(0)[0, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(loaded.people(0)[0, 1:, :2], people[0, 1:, :2] * 4095 / 25_600, atol=1 / 16)


# Save Pose Database


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, POSE_DATABASES, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def test_saving_numbers_instead_of_overwriting(retriever, databases):
    paths = [Path(outputs(EnsemblePoseDatabaseSave.execute(retriever, "mine.safetensors"))[0]) for _ in range(3)]
    assert [path.name for path in paths] == [f"mine{end}.safetensors" for end in ("", "_00002", "_00003")]
    assert {path.parent for path in paths} == {databases}
    assert load_database(paths[2]).prompts == ["a man standing"]
    grown = add(retriever, [pose()], ["a woman"])
    EnsemblePoseDatabaseSave.execute(grown, "mine", overwrite=True)
    assert len(load_database(paths[0])) == 2 and len(list(databases.iterdir())) == 3


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "C:x", "..", ".hidden", "a*", "nul", "COM1.x", "x.", "a\nb", "\x00"]
)
def test_names_never_leave_the_folder(retriever, databases, name):
    with pytest.raises(InputError, match="cannot be a file's name; use letters"):
        EnsemblePoseDatabaseSave.execute(retriever, name)
    assert "cannot be a file's name" in str(EnsemblePoseDatabaseSave.validate_inputs(name=name))
    assert not list(databases.iterdir())


def test_an_empty_name(retriever):
    assert "name: it is empty; give the database a name" in str(EnsemblePoseDatabaseSave.validate_inputs(name=" "))
    assert EnsemblePoseDatabaseSave.validate_inputs(name=None) is True


# Extract Pose


def test_missing_package_and_missing_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, OPENPOSE, ([str(tmp_path)], {".safetensors", ".pth"}))
    image = torch.zeros(1, 64, 64, 3)
    with pytest.raises(MissingModelError) as caught:
        monkeypatch.setattr(pose_factory, "_require_optional", lambda *names: None)
        EnsemblePoseExtract.execute(image)
    sentence = one_sentence(caught.value)
    assert sentence.startswith("Extract Pose: body_pose_model.pth is missing") and "models/openpose folder" in sentence
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError) as unknown:
        pose_factory._require_optional("Extract Pose", "no_such_package")
    assert one_sentence(unknown.value).startswith(
        "Extract Pose: the Python package no_such_package is not installed; run"
    )


class Painted(torch.nn.Module):
    """Stands where the network stands: paints the heat maps and limb fields that a perfect one would for these people."""

    # The limb fields of OpenPose's COCO model: limb (from, to), first of its two channels.
    FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36)

    def __init__(self, people: np.ndarray, confidence: float, height: int, width: int) -> None:
        super().__init__()
        self.people, self.confidence = people, confidence
        # The library halves 368 pixels of height and fills the width up to a multiple of 8 with grey.
        self.size = np.array([int(width * 184 / height) / 8, 184 / 8])
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = data.shape[2] // 8, data.shape[3] // 8
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        heat, fields = torch.zeros(1, 19, rows, columns), torch.zeros(1, 38, rows, columns)
        for person in self.people:  # in shares of the picture
            points = person[:, :2] * self.size
            for part, (px, py) in enumerate(points):
                spot = self.confidence * torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 2)
                heat[0, part] = torch.maximum(heat[0, part], spot)
            for (start, end), channel in zip(LIMBS, self.FIELDS, strict=True):
                along = points[end] - points[start]
                length = max(float(np.linalg.norm(along)), 1e-6)
                ux, uy = along / length
                dx, dy = x - points[start][0], y - points[start][1]
                near = (
                    ((ux * dy - uy * dx).abs() < 1.5) & (dx * ux + dy * uy > -1.5) & (dx * ux + dy * uy < length + 1.5)
                )
                fields[0, channel][near], fields[0, channel + 1][near] = float(ux), float(uy)
        return fields, heat


@pytest.mark.parametrize("height, width", [(512, 512), (384, 640), (1024, 700)])
def test_the_library_s_people_in_the_picture_s_own_pixels(height, width):
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.util import resize_image  # pyright: ignore[reportMissingImports]

    # Large heads and hands apart, so that the coarse maps (8 pixels a cell) keep every keypoint apart.
    shares = standing(2) / [SIZE, SIZE, 1]
    shares[:, [0, 14, 15, 16, 17], :2] = shares[:, [1], :2] + np.array(
        [[0, -0.1], [-0.04, -0.14], [0.04, -0.14], [-0.09, -0.1], [0.09, -0.1]]
    )
    shares[..., 1] = 0.05 + shares[..., 1] * 0.9
    resized = resize_image(np.zeros((height, width, 3), np.uint8), 512)
    network = Painted(shares, 0.8, *resized.shape[:2])
    frame = find_people(network, np.zeros((height, width, 3), np.uint8), 512)
    assert (frame["canvas_width"], frame["canvas_height"]) == (width, height)
    found = np.array([person["pose_keypoints_2d"] for person in frame["people"]]).reshape(-1, 18, 3)
    found = found[found[:, 1, 0].argsort()]
    assert len(found) == 2 and (found[..., 2] > 0.3).all()
    # A cell of the maps is 8 x 512 / 184 pixels of a square picture; their peaks are found far finer than that.
    assert np.abs(found[..., :2] - shares[..., :2] * (width, height)).max() < 3


def test_weights_go_through_the_host_s_safe_loader(tmp_path):
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.open_pose.body import Body  # pyright: ignore[reportMissingImports]
    from controlnet_aux.open_pose.model import bodypose_model  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    published = {name.split(".", 1)[1]: value for name, value in bodypose_model().state_dict().items()}
    torch.save(published, tmp_path / "body_pose_model.pth")
    network = body_network(
        cast(dict, comfy.utils.load_torch_file(str(tmp_path / "body_pose_model.pth"), safe_load=True))
    )
    theirs = Body(str(tmp_path / "body_pose_model.pth")).model
    data = torch.rand(1, 3, 64, 48)
    for ours, other in zip(network(data), theirs(data), strict=True):
        assert torch.equal(ours, other)
    with pytest.raises(ValueError, match="the file holds another network"):
        body_network({"x": torch.zeros(1)})


def test_a_batch_through_the_node(tmp_path, monkeypatch):
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.open_pose.model import bodypose_model  # pyright: ignore[reportMissingImports]

    weights = {name.split(".", 1)[1]: value.contiguous() for name, value in bodypose_model().state_dict().items()}
    (tmp_path / "openpose").mkdir()
    comfy.utils.save_torch_file(weights, str(tmp_path / "openpose" / "body_pose_model.safetensors"))
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, OPENPOSE, ([str(tmp_path / "openpose")], {".safetensors", ".pth"})
    )
    frames = outputs(EnsemblePoseExtract.execute(torch.rand(2, 96, 64, 3), resolution=128))[0]
    assert [(frame["canvas_width"], frame["canvas_height"]) for frame in frames] == [(64, 96)] * 2
    assert all(frame["people"] == [] for frame in frames)  # fresh weights find nobody


# All of it


def test_a_list_of_prompts_becomes_a_database(server: ComfyServer, retriever):
    folder = server.models / POSE_DATABASES
    save_database(retriever.database, folder / "start.safetensors")
    history = server.run(workflow("list"))
    texts = [text for output in history["outputs"].values() for text in output.get("text", ())]
    assert texts.count("Passed: 1 person.") == 3 and str(folder / "list.safetensors") in texts
    assert sum(len(output.get("images", ())) for output in history["outputs"].values()) == 3
    database = load_database(folder / "list.safetensors")
    assert database.prompts[0] == "a man standing" and len(set(database.prompts)) == 4
    assert all(tags["source"] == "factory" for tags in database.tags[1:])
    rejected = workflow("rejected")
    rejected["12"]["inputs"]["people"] = 2
    server.run(rejected)
    assert load_database(folder / "rejected.safetensors").prompts == ["a man standing"]


def workflow(name: str) -> dict:
    """Three pictures with the tiny models; the pose is looked up, because no detector's weights come with the pack."""
    nodes = {
        "1": ("EnsemblePromptVariations", {"action": "a man waving", **LISTS, "count": 3, "seed": 0}),
        "2": ("EnsembleMiniLMTextEncoder", {}),
        "3": ("CLIPTextEncode", {"clip": ["2", 0], "text": ["1", 0]}),
        "4": ("UNETLoader", {"unet_name": TINY_FLUX.name, "weight_dtype": "default"}),
        "5": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": (
            "KSampler",
            {"model": ["4", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["5", 0], "seed": 0}
            | {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        ),
        "7": ("VAELoader", {"vae_name": TINY_VAE.name}),
        "8": ("VAEDecode", {"samples": ["6", 0], "vae": ["7", 0]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "pose_factory"}),
        "10": ("EnsemblePoseDatabaseLoader", {"database": "start.safetensors"}),
        "11": ("EnsemblePoseRetriever", {"pose_db": ["10", 0], "prompt": "standing", "threshold": -1.0, "rank": 1}),
        "12": ("EnsemblePoseQuality", {"pose": ["11", 0], "prompt": ["1", 0]}),
        "13": ("EnsembleAlignmentScore", {"subject": 0.9, "interaction": 0.9, "detail": 0.5}),
        "14": (
            "EnsemblePoseDatabaseAdd",
            {"pose_db": ["10", 0], "pose": ["12", 0], "prompt": ["1", 0], "tags": "source: factory"}
            | {"passed": ["12", 1], "accepted": ["13", 1]},
        ),
        "15": ("EnsemblePoseDatabaseSave", {"pose_db": ["14", 0], "name": name}),
        "16": ("PreviewAny", {"source": ["12", 2]}),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs():
    docs = Path(inspect.getfile(pose_factory)).parents[1] / "web" / "docs"
    for node in pose_factory.NODES:
        schema = node.define_schema()
        page = (docs / f"{schema.node_id}.md").read_text(encoding="utf-8")
        for socket in (*schema.inputs, *schema.outputs):
            assert f"| {socket.display_name or socket.id} |" in page, (schema.node_id, socket.id)
