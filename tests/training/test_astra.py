"""The training of ASTRA, with the host's own models."""

from __future__ import annotations

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

from comfyui_ensemble.attention_patches.dsm import KEY as DSM_KEY
from comfyui_ensemble.attention_patches.dsm_adapter import fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import load_dsm, write_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, SYMMETRIC_ROPE, SYMMETRIC_UNOPE
from comfyui_ensemble.models_info.registry import DSM_ADAPTERS
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.dsm import EnsembleDSM
from comfyui_ensemble.nodes.flux import EnsembleEURoPE, EnsembleReferenceLatents
from comfyui_ensemble.nodes.item_prompt import EnsembleItemPrompt
from comfyui_ensemble.nodes.pose import EnsemblePoseRender
from comfyui_ensemble.training.astra import ASTRA, astra
from comfyui_ensemble.training.astra_config import ASTRAConfig
from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.flux_task import Absent
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.precision import autocast
from comfyui_ensemble.training.randomness import generator
from comfyui_ensemble.training.sample import TrainingSample
from comfyui_ensemble.training.task import Weights
from comfyui_ensemble.training.tiny import tiny_vae
from comfyui_ensemble.training.weights import save_weights
from devtools.block_scenes import BlockScenes
from devtools.training_checks import disturb, fresh_flux, learn_by_heart, losses, prepared_batch, slopes
from nodes import CLIPTextEncode

SMALL = ASTRAConfig(
    batch_size=4,
    learning_rate=3e-3,
    precision="fp32",
    augment_references=False,
    pose_dropout=0.0,
    lora_rank=8,
    dsm_width=32,
    dsm_heads=2,
    dsm_subjects=4,
    picture_steps=3,
)
DROPOUTS = {"pose_dropout": 0.4, "reference_dropout": 0.3, "dsm_dropout": 0.4, "condition_dropout": 0.3}


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
def make(flux, vae, clip, vision):
    """make(**settings): the task and its data, four pictures of one or two blocks."""

    def build(**settings: Any) -> tuple[ASTRA, TrainingData]:
        return astra(
            flux, vae, clip, vision, TrainingData(BlockScenes(size=(48, 48)), 48, 32), replace(SMALL, **settings)
        )

    return build


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for LoRAs and DSM adapters."""
    for folder in ("loras", DSM_ADAPTERS):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return tmp_path


def test_it_learns_four_pictures_by_heart(make, tmp_path: Path):
    task, data = make()
    before, after = learn_by_heart(task, data, replace(SMALL, steps=40), tmp_path)
    assert after < 0.6 * before


def test_a_run_that_was_stopped_gives_what_one_in_one_go_gives(make, tmp_path: Path):
    """Bit by bit, with dropout, augmentation, an average, and samples encoded by threads."""
    settings = {**DROPOUTS, "augment_references": True}
    config = replace(SMALL, **settings, ema_decay=0.9, batch_size=2)

    def run(steps: int, folder: str) -> Weights:
        task, data = make(**settings)
        return train(task, data, replace(config, steps=steps), tmp_path / folder).weights

    whole = run(4, "whole")
    run(2, "parts")
    resumed = run(4, "parts")
    for one, other in zip(whole.files, resumed.files, strict=True):
        assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


def test_another_model_or_encoder_is_another_run(make, flux, clip, vision):
    task, data = make()
    assert task.identity() == make(lora_rank=4)[0].identity()
    other = astra(flux, comfy.sd.VAE(sd=tiny_vae(1)), clip, vision, data, SMALL)[0].identity()
    assert [name for name, value in task.identity().items() if other[name] != value] == ["vae"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_against_differences(make, checkpointing):
    task, data = make(gradient_checkpointing=checkpointing, per_item=True)
    disturb(task)
    batch, positions = prepared_batch(task, data, 2)
    for name in ("lora", "dsm"):
        said, found = slopes(task, name, batch, positions, 3e-3)
        assert found == pytest.approx(said, rel=2e-3), name


def test_a_samples_loss_is_its_own(make):
    """Whoever is in the batch with it, in whatever order, with longer words, with other references or none."""
    task, data = make(**DROPOUTS)
    disturb(task)
    batch, positions = prepared_batch(task, data, 12, step=1)
    assert len({sample["text"].shape[1] for sample in batch}) > 2 and len({task.structure(each) for each in batch}) > 2
    together = losses(task, batch, positions)
    backwards = losses(task, batch[::-1], positions[::-1]).flip(0)
    alone = torch.cat([losses(task, [sample], [place]) for sample, place in zip(batch, positions, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(together, backwards, rtol=2e-5, atol=2e-5)


def test_noise_goes_by_the_position_and_the_seed(make):
    task, data = make()
    batch, positions = prepared_batch(task, data, 4)
    first = losses(task, batch, positions)
    assert torch.equal(losses(task, batch, positions), first)
    assert (losses(task, batch, [position + 1 for position in positions]) - first).abs().min() > 1e-4
    task.config = replace(task.config, seed=1)
    assert (losses(task, batch, positions) - first).abs().min() > 1e-4


def test_what_a_sample_learns_without_goes_by_its_position(make):
    task, other = make(**DROPOUTS)[0], make(**DROPOUTS)[0]
    absences = [task.absent(position) for position in range(8000)]
    assert absences == [other.absent(position) for position in range(8000)]
    for name, share in {"pose": 0.4, "references": 0.3, "features": 0.4, "caption": 0.3}.items():
        assert sum(getattr(absence, name) for absence in absences) / 8000 == pytest.approx(share, abs=0.04)
    both = sum(absence.pose and absence.references for absence in absences) / 8000
    assert both == pytest.approx(0.12, abs=0.03)  # independently of one another


def test_a_batch_has_or_lacks_its_references_and_pose_as_one(make):
    task = make(**DROPOUTS, batch_size=8)[0]
    batches = [[task.absent(position) for position in range(first, first + 8)] for first in range(0, 800, 8)]
    for name, whole in {"pose": True, "references": True, "features": False, "caption": False}.items():
        one = [len({getattr(absence, name) for absence in batch}) == 1 for batch in batches]
        assert all(one) == whole
    assert len({batch[0].pose for batch in batches}) == len({batch[0].references for batch in batches}) == 2


def test_what_is_left_out_is_not_there(make):
    task, data = make()
    sample = data.load(data.batch(0, 4)[1])
    count = len(sample.subjects)
    whole, bare = task.encode(sample, Absent()), task.encode(sample, Absent(True, True, True, True))
    assert [entry.role for entry in whole["layout"].references] == ["subject"] * count + ["pose"]
    assert bare["layout"].references == () and bare["references"] == []
    assert bare["text"].shape[1] < whole["text"].shape[1] and not any(bare["spans"].values())
    plain = task.encode(sample, Absent(caption=True, references=True, pose=True))
    seen, unseen = (task.conditionings([prepared], 1.0)[0][0] for prepared in (plain, bare))
    assert torch.equal(unseen[0], bare["text"]) and not unseen[1][DSM_KEY].any()
    assert (
        torch.equal(seen[0], bare["text"]) and seen[1][DSM_KEY].any()
    )  # a fresh DSM says nothing yet, but has seen something


def as_a_workflow(
    model, vae, clip, vision, dsm, sample: TrainingSample, mode: str, per_item: bool, cfg: float
) -> torch.Tensor:
    """What an artist gets of a sample's conditions: through the pack's nodes and the host's sampler."""
    subjects = [
        Subject(each.reference[None], each.reference_mask[None], each.name, each.description, each.category)
        for each in sample.subjects
    ]
    cast, (height, width) = Cast(tuple(subjects)), sample.target.shape[:2]
    frame = {"people": [each.person for each in sample.subjects], "canvas_width": width, "canvas_height": height}
    pose = EnsemblePoseRender.execute([frame], width, height, SMALL.pose_line_width).args[0]
    positive = EnsembleItemPrompt.execute(clip, sample.caption, cast).args[0]
    positive, layout = EnsembleReferenceLatents.execute(positive, vae, cast, 32, pose).args
    model, positive = EnsembleDSM.execute(model, positive, dsm, cast, vision, 1.0, 1.0, per_item).args
    model = EnsembleEURoPE.execute(model, layout, mode).args[0]
    negative = CLIPTextEncode().encode(clip, "")[0]
    positive, negative = (
        node_helpers.conditioning_set_values(conditioning, {"guidance": SMALL.picture_guidance})
        for conditioning in (positive, negative)
    )
    noise = torch.randn(1, 16, height // 8, width // 8, generator=generator(SMALL.seed, "picture", 0))
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, SMALL.picture_steps, cfg, "euler", "simple", positive, negative, empty, disable_pbar=True
    )


@pytest.mark.parametrize(
    ("mode", "per_item", "cfg"),
    [(EUROPE, True, 1.0), (EUROPE, True, 2.5), (SYMMETRIC_ROPE, False, 1.0), (SYMMETRIC_UNOPE, False, 1.5)],
)
def test_the_files_do_in_a_workflow_what_was_trained(make, flux, vae, clip, vision, models, mode, per_item, cfg):
    task, data = make(mode=mode, per_item=per_item, picture_cfg=cfg)
    disturb(task)
    sample = data.load(data.batch(0, 4)[1])
    with torch.no_grad():
        trained = task.draw(task.encode(sample, Absent()))
    lora, adapter = save_weights(task.weights(), "mine")
    assert (lora.parent.name, lora.name, adapter.name) == ("loras", "mine_lora.safetensors", "mine_dsm.safetensors")
    with torch.inference_mode():
        loaded, _ = comfy.sd.load_lora_for_models(flux, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
        made = as_a_workflow(loaded, vae, clip, vision, load_dsm(adapter), sample, mode, per_item, cfg)
        base = as_a_workflow(flux, vae, clip, vision, load_dsm(adapter), sample, mode, per_item, cfg)
    torch.testing.assert_close(made, trained, rtol=1e-3, atol=1e-4)
    assert (base - trained).abs().mean() > 0.01  # the LoRA matters


def test_a_training_goes_on_from_files(make, models):
    task, _ = make()
    disturb(task)
    save_weights(task.weights(), "mine")
    folder_paths.filename_list_cache.clear()
    again = make(lora="mine_lora.safetensors", dsm_name="mine_dsm.safetensors", seed=3)[0]
    for name, module in task.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(again.modules()[name].state_dict()[key], value), (name, key)


def test_files_that_will_not_do(make, models):
    task, _ = make()
    save_weights(task.weights(), "mine")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(TrainingError, match=r"lora is 'other\.safetensors', which is not in models/loras"):
        make(lora="other.safetensors")
    with pytest.raises(TrainingError, match=r"dsm_name is '\.\./x\.safetensors', which is not in models/ensemble_dsm"):
        make(dsm_name="../x.safetensors")
    with pytest.raises(TrainingError, match="whose rank is 8, while lora_rank is 4"):
        make(lora="mine_lora.safetensors", lora_rank=4)
    with pytest.raises(TrainingError, match=r"dsm_name is 'wide\.safetensors', which was made for another model"):
        config = replace(task.dsm.model.config, model_width=64)
        write_dsm(models / DSM_ADAPTERS / "wide.safetensors", fresh_dsm(config, 0), config)
        folder_paths.filename_list_cache.clear()
        make(dsm_name="wide.safetensors")


def test_without_dsm_only_a_lora_is_trained(make, flux, vae, clip):
    task, data = make(dsm=False)
    assert list(task.modules()) == ["lora"]
    assert [file.folder for file in task.weights().files] == ["loras"]
    batch, positions = prepared_batch(task, data, 2)
    assert losses(task, batch, positions).isfinite().all()
    astra(flux, vae, clip, None, data, replace(SMALL, dsm=False))  # and no CLIP vision model is needed


def test_a_fresh_dsm_changes_nothing(make):
    with_one, data = make()
    without = make(dsm=False)[0]
    batch, positions = prepared_batch(with_one, data, 4)
    torch.testing.assert_close(losses(with_one, batch, positions), losses(without, batch, positions))


def test_sample_pictures(make):
    assert make()[0].picture() is None
    task, _ = make(picture_every=1)
    first = task.picture()
    assert first.shape == (48, 96, 3) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first[:, :48], task.shown.target)
    assert torch.equal(task.picture(), first)
    disturb(task)
    assert not torch.equal(task.picture()[:, 48:], first[:, 48:])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same(make, precision):
    task, data = make()
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    with autocast(precision, torch.device("cpu")):
        half = losses(task, batch, positions)
    torch.testing.assert_close(half.float(), losses(task, batch, positions), rtol=0.03, atol=0.01)


def test_subjects_in_equal_words_and_without_any(make):
    task, data = make()
    sample = data.load(data.batch(0, 4)[1])
    one, other = sample.subjects
    alike = replace(sample, subjects=(one, replace(other, description=one.description)))
    spans = task.encode(alike, Absent())["spans"]
    assert spans["subject 1"] == spans["subject 2"] != []
    silent = replace(sample, subjects=(replace(one, description=" "), other))
    assert task.encode(silent, Absent())["spans"]["subject 1"] == []
    nobody = replace(sample, subjects=())
    assert losses(task, [task.encode(nobody, Absent())], [0]).isfinite().all()


def test_captions_are_read_as_they_stand(make):
    task, data = make()
    sample = data.load(data.batch(0, 4)[0])
    (subject,) = sample.subjects
    bracketed = replace(subject, description="a (red:1.5) {block}")
    odd = replace(sample, caption="here: a (red:1.5) {block} (really)", subjects=(bracketed,))
    encoded = task.encode(odd, Absent())
    assert encoded["text"].shape[1] == len(task.encoders.clip.tokenizer.minilm.tokenizer(odd.caption)["input_ids"])
    ((start, stop),) = encoded["spans"]["subject 1"]
    assert stop - start == len(task.encoders.clip.tokenizer.minilm.tokenizer("a (red:1.5) {block}")["input_ids"]) - 2


def test_a_sample_that_will_not_do(make):
    task, data = make()
    sample = data.load(data.batch(0, 4)[1])
    with pytest.raises(ValueError, match="its caption does not say the description of every subject"):
        task.prepare(replace(sample, caption="nothing of the kind"), 0)
    with pytest.raises(ValueError, match="a reference of it is larger than its target"):
        still = tuple(replace(each, person=None) for each in sample.subjects)
        task.prepare(replace(sample, target=sample.target[:16], subjects=still), 0)
    with pytest.raises(ValueError, match="it has 6 subjects, this DSM tells 4 apart"):
        task.prepare(replace(sample, subjects=sample.subjects * 3), 0)


def test_the_papers_numbers():
    config = read_config(ASTRAConfig, "")
    assert (config.lora_rank, config.batch_size, config.steps, config.mode) == (512, 1, 100_000, EUROPE)
    assert config.dsm and config.timestep_shift == "picture size"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('{"mode": "UnoPE"}', "mode is 'UnoPE'; choose one of: EURoPE, symmetric RoPE, symmetric UnoPE"),
        ('{"lora_rank": 0}', "lora_rank is 0; it must be at least 1"),
        ('{"pose_dropout": 1.5}', "pose_dropout is 1.5; it must lie between 0 and 1"),
        ('{"dsm_width": 30, "dsm_heads": 4}', "dsm_width is 30 and dsm_heads 4"),
        ('{"guidance": NaN}', "guidance is nan"),
        ('{"timestep_shift": "some"}', "timestep_shift is 'some'; choose one of: picture size, fixed, none"),
    ],
)
def test_settings_that_will_not_do(settings, sentence):
    with pytest.raises(TrainingError, match=sentence):
        read_config(ASTRAConfig, settings)


def test_inputs_that_will_not_do(make, flux, sdxl, sdxl_vae, vae, clip, flux_clip, vision):
    data = make()[1]
    for parts, input_name, sentence in (
        ((sdxl, vae, clip, vision), "model", "connect a FLUX model"),
        ((flux, sdxl_vae, clip, vision), "vae", "makes latents of 4 channels, the model reads 16"),
        ((flux, vae, flux_clip, vision), "clip", "its text is 32 wide, the model reads 384"),
        ((flux, vae, clip, None), "clip_vision", "connect one"),
    ):
        with pytest.raises(TrainingError, match=sentence) as caught:
            astra(*parts, data, SMALL)
        assert caught.value.input_name == input_name
    with pytest.raises(TrainingError, match=r"dsm_layers is \[9\], while the CLIP vision model has the layers 0 to 5"):
        astra(flux, vae, clip, vision, data, replace(SMALL, dsm_layers=(9,)))


def test_a_fresh_dsm_reads_layers_all_over_the_encoder(make):
    task, _ = make()
    assert task.dsm.model.config.clip_layers == (0, 2, 3, 4)  # of 6
    assert make(dsm_layers=(1, 5))[0].dsm.model.config.clip_layers == (1, 5)
