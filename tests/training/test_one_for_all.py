"""The training of One-for-All, with the host's own models."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import node_helpers
import pytest
import torch

from comfyui_ensemble.attention_patches.condition_positions import CCPA, EQUATION_3, SCHEMES, SLOT_CENTRE
from comfyui_ensemble.attention_patches.dam_file import load_dam, write_dam
from comfyui_ensemble.attention_patches.dam_generator import fresh_dam
from comfyui_ensemble.models_info.registry import DAM_ADAPTERS
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.condition_positions import EnsembleConditionPositions
from comfyui_ensemble.nodes.dam import EnsembleDAM
from comfyui_ensemble.nodes.flux import EnsembleReferenceLatents
from comfyui_ensemble.nodes.item_prompt import EnsembleItemPrompt
from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.flux_task import Absent
from comfyui_ensemble.training.one_for_all import OneForAll, one_for_all
from comfyui_ensemble.training.one_for_all_config import OneForAllConfig
from comfyui_ensemble.training.randomness import generator
from comfyui_ensemble.training.sample import TrainingSample
from comfyui_ensemble.training.weights import save_weights
from devtools.block_scenes import BlockScenes
from devtools.training_checks import disturb, fresh_flux, learn_by_heart, losses, prepared_batch, slopes

CATEGORIES = ("face", "upper garment", "lower garment", "bag")
SMALL = OneForAllConfig(
    batch_size=4,
    learning_rate=3e-3,
    precision="fp32",
    augment_references=False,
    lora_rank=8,
    dam_width=16,
    picture_steps=3,
)


@pytest.fixture(scope="module")
def flux():
    with torch.inference_mode():
        return fresh_flux()


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def make(flux, vae, clip):
    """make(shown, **settings): the task and its data, four pictures of two blocks of these categories."""

    def build(shown: tuple[str, ...] = CATEGORIES, **settings: Any) -> tuple[OneForAll, TrainingData]:
        scenes = BlockScenes(size=(48, 48), blocks=(2,), categories=shown)
        return one_for_all(flux, vae, clip, TrainingData(scenes, 48, 32), replace(SMALL, **settings))

    return build


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for LoRAs and DAM's files."""
    for folder in ("loras", DAM_ADAPTERS):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def test_it_learns_four_pictures_by_heart(make, tmp_path: Path):
    task, data = make()
    before, after = learn_by_heart(task, data, replace(SMALL, steps=40), tmp_path)
    assert after < 0.6 * before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_against_differences(make, checkpointing):
    task, data = make(gradient_checkpointing=checkpointing)
    disturb(task)
    batch, positions = prepared_batch(task, data, 2)
    for name in ("lora", "dam"):
        said, found = slopes(task, name, batch, positions, 3e-3)
        assert found == pytest.approx(said, rel=2e-3), name


def test_a_sample_has_one_subject_and_categories_are_in_proportion(make):
    task, data = make()
    seen: Counter[str] = Counter()
    for step in range(7):
        batch, _ = prepared_batch(task, data, 4, step)
        for sample in batch:
            (reference,) = sample["layout"].references
            seen[reference.category] += 1
            assert list(sample["spans"]) == [reference.name] and sample["spans"][reference.name]
    assert seen == {"face": 8, "upper garment": 8, "lower garment": 8, "bag": 4}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_samples_loss_is_its_own(make, scheme):
    """Whoever is in the batch with it: other categories, dresses that are given twice, none, pose maps."""
    both = ("face", "dress", "bag")
    settings = {"scheme": scheme, "pose_maps": True, "pose_dropout": 0.4, "reference_dropout": 0.3}
    task, data = make(both, categories=dict.fromkeys(both, 1), **settings)
    disturb(task)
    batch, positions = prepared_batch(task, data, 9)
    assert len({task.structure(each) for each in batch}) > 3
    together = losses(task, batch, positions)
    backwards = losses(task, batch[::-1], positions[::-1]).flip(0)
    alone = torch.cat([losses(task, [sample], [place]) for sample, place in zip(batch, positions, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(together, backwards, rtol=2e-5, atol=2e-5)


def test_every_scheme_and_anchor_is_another_training(make):
    found = []
    for scheme, anchor in [*((scheme, EQUATION_3) for scheme in SCHEMES), (CCPA, SLOT_CENTRE)]:
        task, data = make(scheme=scheme, item_anchor=anchor)
        disturb(task)
        found.append(losses(task, *prepared_batch(task, data, 4)).detach())
    for number, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:number])


def as_a_workflow(model, vae, clip, dam, sample: TrainingSample, scheme: str, anchor: str) -> torch.Tensor:
    """What an artist gets of a sample's conditions: through the pack's nodes and the host's sampler."""
    subjects = [
        Subject(each.reference[None], each.reference_mask[None], each.name, each.description, each.category)
        for each in sample.subjects
    ]
    cast, (height, width) = Cast(tuple(subjects)), sample.target.shape[:2]
    positive = EnsembleItemPrompt.execute(clip, sample.caption, cast).args[0]
    positive, layout = EnsembleReferenceLatents.execute(positive, vae, cast, 32).args
    model = EnsembleDAM.execute(model, dam, 1.0).args[0]
    model = EnsembleConditionPositions.execute(model, layout, scheme, anchor).args[0]
    positive = node_helpers.conditioning_set_values(positive, {"guidance": SMALL.picture_guidance})
    noise = torch.randn(1, 16, height // 8, width // 8, generator=generator(SMALL.seed, "picture", 0))
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, SMALL.picture_steps, 1.0, "euler", "simple", positive, [], empty, disable_pbar=True
    )


@pytest.mark.parametrize(
    ("category", "scheme", "anchor"),
    [("bag", CCPA, EQUATION_3), ("dress", CCPA, SLOT_CENTRE), *(("bag", scheme, EQUATION_3) for scheme in SCHEMES[1:])],
)
def test_the_files_do_in_a_workflow_what_was_trained(make, flux, vae, clip, models, category, scheme, anchor):
    task, data = make((category,), categories={category: 1}, scheme=scheme, item_anchor=anchor)
    disturb(task)
    sample = data.load(data.batch(0, 4)[1])
    with torch.no_grad():
        trained = task.draw(task.encode(sample, Absent()))
    lora, dam = save_weights(task.weights(), "mine")
    assert (lora.parent.name, lora.name, dam.name) == ("loras", "mine_lora.safetensors", "mine_dam.safetensors")
    with torch.inference_mode():
        loaded, _ = comfy.sd.load_lora_for_models(flux, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
        made = as_a_workflow(loaded, vae, clip, load_dam(dam), sample, scheme, anchor)
        base = as_a_workflow(flux, vae, clip, load_dam(dam), sample, scheme, anchor)
    torch.testing.assert_close(made, trained, rtol=1e-3, atol=1e-4)
    assert (base - trained).abs().mean() > 0.01  # the LoRA matters


def test_a_training_goes_on_from_files(make, models):
    task, _ = make()
    disturb(task)
    save_weights(task.weights(), "mine")
    folder_paths.filename_list_cache.clear()
    again = make(lora="mine_lora.safetensors", dam_name="mine_dam.safetensors", seed=3)[0]
    for name, module in task.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(again.modules()[name].state_dict()[key], value), (name, key)


def test_files_that_will_not_do(make, models):
    config = replace(make()[0].dam.model.config, single_blocks=1)
    write_dam(models / DAM_ADAPTERS / "short.safetensors", fresh_dam(config, 0), config)
    folder_paths.filename_list_cache.clear()
    with pytest.raises(TrainingError, match=r"dam_name is 'other\.safetensors', which is not in models/ensemble_dam"):
        make(dam_name="other.safetensors")
    with pytest.raises(TrainingError, match=r"dam_name is 'short\.safetensors', which was made for another model"):
        make(dam_name="short.safetensors")


def test_without_dam_only_a_lora_is_trained(make):
    task, data = make(dam=False)
    assert list(task.modules()) == ["lora"]
    assert [file.folder for file in task.weights().files] == ["loras"]
    assert losses(task, *prepared_batch(task, data, 2)).isfinite().all()


def test_a_fresh_dam_changes_nothing(make):
    with_one, data = make()
    without = make(dam=False)[0]
    batch, positions = prepared_batch(with_one, data, 4)
    torch.testing.assert_close(losses(with_one, batch, positions), losses(without, batch, positions))


def test_sample_pictures_show_a_single_subject(make):
    assert make()[0].picture() is None
    task, _ = make(picture_every=1)
    assert task.picture().shape == (48, 96, 3)
    assert len(task.shown.subjects) == 1


def test_the_papers_numbers():
    config = read_config(OneForAllConfig, "")
    assert (config.lora_rank, config.batch_size, config.steps, config.learning_rate) == (512, 16, 30_000, 5e-6)
    assert config.categories == {"face": 2, "upper garment": 2, "lower garment": 2, "bag": 1}
    assert (config.scheme, config.item_anchor, config.dam) == (CCPA, EQUATION_3, True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('{"scheme": "ids"}', "scheme is 'ids'; choose one of: condition ids"),
        ('{"t_min": 1.0}', "t_min is 1.0; it must lie between 0 and 1"),
        ('{"categories": {"scarf": 1}}', "categories holds 'scarf', which has no place; choose among: face, person"),
        ('{"categories": {}}', "categories names none to learn from"),
        ('{"categories": {"face": 0}}', "categories names none to learn from"),
        ('{"categories": {"face": 2, "bag": -1}}', "categories names none to learn from"),
    ],
)
def test_settings_that_will_not_do(settings, sentence):
    with pytest.raises(TrainingError, match=sentence):
        read_config(OneForAllConfig, settings)


def test_data_without_a_category_is_refused(make):
    with pytest.raises(TrainingError, match="no subject is of the category 'upper garment'") as caught:
        make(("face",))
    assert caught.value.input_name == "data"
