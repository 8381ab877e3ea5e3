"""Stage 1 of AnyStory's training, with the host's own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

from comfyui_ensemble.attention_patches.anystory import apply_anystory
from comfyui_ensemble.attention_patches.anystory_call import Settings
from comfyui_ensemble.attention_patches.anystory_features import Seen, encode_features
from comfyui_ensemble.attention_patches.anystory_file import load_anystory
from comfyui_ensemble.models_info.registry import ANYSTORY_NETWORKS
from comfyui_ensemble.nodes.anystory_encode import EnsembleAnyStoryEncode
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.training import objectives
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig
from comfyui_ensemble.training.anystory_encoder import AnyStoryEncoderTask, anystory_encoder, fresh_network
from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.randomness import generator
from comfyui_ensemble.training.weights import save_weights
from devtools.coloured_scenes import NETWORK, QUICK, brief_base, coloured_data, in_double, lively_vae
from devtools.training_checks import UNSEEN, disturb, learn_by_heart, losses, prepared_batch, slopes

CONFIG = AnyStoryEncoderConfig(**QUICK, **NETWORK)
REGIONS = ("picture", "masks")
SEEN = ("clip", "reference", "reference_mask")


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def small_vae():
    with torch.inference_mode():
        return lively_vae()


@pytest.fixture(scope="module")
def base(small_vae, clip, tmp_path_factory: pytest.TempPathFactory):
    """A small SDXL that draws two colours, and does not know which."""
    with torch.inference_mode(False), torch.enable_grad():
        return brief_base(small_vae, clip, tmp_path_factory.mktemp("base"))


@pytest.fixture
def make(base, small_vae, clip, vision):
    """make(**settings): the task and its data."""

    def build(data: TrainingData | None = None, **settings: Any) -> tuple[AnyStoryEncoderTask, TrainingData]:
        return anystory_encoder(base, small_vae, clip, vision, data or coloured_data(), replace(CONFIG, **settings))

    return build


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for AnyStory networks."""
    folder = tmp_path / ANYSTORY_NETWORKS
    monkeypatch.setitem(folder_paths.folder_names_and_paths, ANYSTORY_NETWORKS, ([str(folder)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    return folder


@pytest.mark.parametrize("regions", REGIONS)
def test_it_learns_four_pictures_by_heart(make, regions, tmp_path: Path):
    """Each by its own subjects: with those of another picture it knows less than it did at first."""
    task, data = make(regions=regions)
    before, after = learn_by_heart(task, data, replace(task.settings, steps=160, learning_rate=4e-3), tmp_path)
    assert after < 0.8 * before
    batch, _ = prepared_batch(task, data, 4)
    others = [{**each, **{name: batch[(n + 2) % 4][name] for name in SEEN}} for n, each in enumerate(batch)]
    unseen = range(UNSEEN, UNSEEN + 32)
    with torch.no_grad():
        own, wrong = (losses(task, each * 8, unseen).mean() for each in (batch, others))
    assert wrong > 1.2 * own


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("regions", REGIONS)
def test_gradients_against_differences(make, regions, checkpointing):
    task, data = make(regions=regions, gradient_checkpointing=checkpointing)
    disturb(task)
    batch, positions = prepared_batch(task, data, 3)
    batch = in_double(task, batch)
    assert sorted(task.modules()) == ["encoder", "injection", "reference_net"]
    for name in task.modules():
        said, found = slopes(task, name, batch, positions, 3e-4)
        assert found == pytest.approx(said, rel=1e-3), name


@pytest.mark.parametrize("regions", REGIONS)
def test_checkpointing_changes_nothing(make, regions):
    found = []
    for checkpointing in (False, True):
        task, data = make(regions=regions, gradient_checkpointing=checkpointing)
        disturb(task)
        batch, positions = prepared_batch(task, data, 3)
        learning = [p for module in task.modules().values() for p in module.parameters() if p.requires_grad]
        value = losses(task, batch, positions)
        found.append((value.detach(), torch.autograd.grad(value.sum(), learning)))
    assert torch.equal(found[0][0], found[1][0])
    for plain, checkpointed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_all_that_the_pictures_come_from_learns(make):
    task, data = make(regions="masks")
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    losses(task, batch, positions).sum().backward()
    parameters = {f"{n}.{m}": p for n, module in task.modules().items() for m, p in module.named_parameters()}
    assert not [name for name, value in parameters.items() if value.requires_grad and not value.grad.any()]
    frozen = {name for name, value in parameters.items() if not value.requires_grad}
    assert all(name.startswith("reference_net.") for name in frozen) and "reference_net.out.2.weight" in frozen
    others = (task.anystory.encoding.model.router_encoder, task.anystory.injecting.model.routers, task.model.network)
    assert not any(value.requires_grad or value.grad is not None for each in others for value in each.parameters())


@pytest.mark.parametrize("regions", REGIONS)
def test_a_samples_loss_is_its_own(make, regions):
    """Whoever is in the batch with it, in whatever order, with longer words, with more subjects, of another size."""
    task, data = make(regions=regions, condition_dropout=0.4, reference_dropout=0.4)
    _, wide = make(coloured_data(96), regions=regions)
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    more, later = prepared_batch(task, wide, 4, step=1)
    batch, positions = [*batch, *more], [*positions, *later]
    assert len({len(each["text"]) for each in batch}) > 1 and len({each["latent"].shape for each in batch}) == 2
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


def test_the_loss_is_the_mean_square_of_the_noises_error(sdxl, small_vae, clip, vision):
    """With the prediction of inference: one subject that owns every pixel, on a model that predicts noise."""
    task, data = anystory_encoder(sdxl, small_vae, clip, vision, coloured_data(), replace(CONFIG, regions="masks"))
    disturb(task)
    sample = data.load(data.batch(0, 4)[0])
    subject = replace(sample.subjects[0], mask=torch.ones(sample.target.shape[:2]))
    prepared, position = task.prepare(replace(sample, subjects=(subject,)), 5), 5
    noise = torch.randn(prepared["latent"].shape, generator=generator(task.config.seed, "noise", position))
    sigma = task.model.sigmas(generator(task.config.seed, "sigma", position), 1)
    x = prepared["latent"] + sigma * noise
    features = features_of(task, [subject])
    # A router that gives everything to the subject: its map's logits are those of a zero matrix, and ties go to the first.
    for weight in task.anystory.injecting.model.routers.parameters():
        weight.data.zero_()
    patched, _ = apply_anystory(task.model.patcher, features, Settings(1.0, 0.0))
    text = prepared["text"][None], {"pooled_output": prepared["pooled"][None]}
    with torch.no_grad():
        denoised = task.model.predict(x[None], sigma, [[list(text)]], patched)[0]
    wanted = ((x - denoised) / sigma - noise).square().mean()
    assert task.model.objective == objectives.EPSILON
    assert losses(task, [prepared], [position]).item() == pytest.approx(float(wanted), rel=1e-4)


@torch.no_grad()
def features_of(task, subjects):
    """As AnyStory Encode encodes a cast, with the network under training."""
    seen = [task.encoders.subject(each, task.sizes.reference_size) for each in subjects]
    return encode_features(
        task.anystory, [each.name for each in subjects], [Seen(s.clip, s.latent, s.mask) for s in seen], task.zero
    )


def test_references_are_seen_as_at_inference(make, small_vae, vision):
    task, data = make()
    sample = data.load(data.batch(0, 4)[1])
    cast = Cast(
        tuple(
            Subject(each.reference[None], each.reference_mask[None], each.name, each.description, "person")
            for each in sample.subjects
        )
    )
    with torch.no_grad():
        theirs = EnsembleAnyStoryEncode.execute(task.anystory, cast, vision, small_vae).args[0]
    ours = features_of(task, sample.subjects)
    assert torch.equal(theirs.tokens, ours.tokens) and torch.equal(theirs.router, ours.router)
    for one, other in zip(theirs.hidden[1:], ours.hidden[1:], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_a_subject_that_nobody_sees_changes_nothing(make):
    task, data = make(condition_dropout=1.0, reference_dropout=1.0)
    disturb(task)
    batch, positions = prepared_batch(task, data, 2)
    other = [{**each, "clip": each["clip"] + 1, "reference": each["reference"] + 1} for each in batch]
    assert torch.equal(losses(task, batch, positions), losses(task, other, positions))
    task, _ = make(condition_dropout=1.0)  # the references stay
    disturb(task)
    assert not torch.equal(losses(task, batch, positions), losses(task, other, positions))


def test_as_many_are_left_out_as_the_paper_says(make):
    task, _ = make(condition_dropout=AnyStoryEncoderConfig().condition_dropout)
    share = task._dropped("clip", task.config.condition_dropout, range(4000)).float().mean()
    assert float(share) == pytest.approx(0.1, abs=0.02)


def test_one_subject_is_drawn_where_there_is_no_map(make):
    task, data = make(coloured_data(subjects=(2,)))
    sample = data.load(data.batch(0, 1)[0])
    drawn = [task.prepare(sample, position) for position in range(12)]
    both = [task.prepare_subjects(sample, (subject,), with_masks=False)["clip"] for subject in sample.subjects]
    which = [[torch.equal(each["clip"], one) for one in both].index(True) for each in drawn]
    assert set(which) == {0, 1} and all(len(each["clip"]) == 1 for each in drawn)
    assert which == [[torch.equal(task.prepare(sample, p)["clip"], one) for one in both].index(True) for p in range(12)]


def test_each_way_of_predicting_has_its_own_loss(make, sdxl, small_vae, clip, vision):
    """The small model predicts velocity; the tiny one noise; others are not trained for."""
    task, data = make()
    assert task.model.objective == objectives.VELOCITY
    task, _ = anystory_encoder(sdxl, small_vae, clip, vision, data, CONFIG)
    assert task.model.objective == objectives.EPSILON
    batch, positions = prepared_batch(task, data, 2)
    said, found = slopes(task, "encoder", in_double(task, batch), positions, 3e-4)
    assert found == pytest.approx(said, rel=1e-3)
    with torch.inference_mode():
        patched = ModelSamplingDiscrete().patch(sdxl, "lcm", False)[0]
    with pytest.raises(ValueError, match="predicts neither noise nor velocity"):
        anystory_encoder(patched, small_vae, clip, vision, data, CONFIG)


def test_the_file_holds_what_was_trained(make, models: Path, base, small_vae, clip, vision):
    """A loaded file predicts as the network under training, in training and at inference."""
    task, data = make(regions="masks")
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    (path,) = save_weights(task.weights(), "mine")
    assert path.parent == models
    with torch.inference_mode():
        loaded = load_anystory(path)
    again, _ = anystory_encoder(base, small_vae, clip, vision, data, task.settings, loaded)
    assert torch.equal(losses(again, batch, positions), losses(task, batch, positions))
    sample = data.load(data.batch(0, 4)[1])
    prompts = [[[batch[1]["text"][None], {"pooled_output": batch[1]["pooled"][None]}]]]
    x, sigma = 3 * torch.randn(1, 4, 8, 8), torch.tensor([2.0])
    pictures = []
    for anystory in (task.anystory, loaded):
        features = features_of(_With(task, anystory), sample.subjects)
        patched, _ = apply_anystory(task.model.patcher, features, Settings(1.0, 0.0))
        with torch.no_grad():
            pictures.append(task.model.predict(x, sigma, prompts, patched))
    assert torch.equal(*pictures)


class _With:
    """A task's encoders beside another network."""

    def __init__(self, task, anystory) -> None:
        self.encoders, self.sizes, self.zero, self.anystory = task.encoders, task.sizes, task.zero, anystory


def test_nothing_that_was_given_changes(make, anystory, sdxl, sdxl_vae, clip, vision, tmp_path: Path):
    halves = (anystory.encoding.model, anystory.injecting.model, sdxl.model)
    before = [{name: value.clone() for name, value in half.state_dict().items()} for half in halves]
    task, data = anystory_encoder(sdxl, sdxl_vae, clip, vision, coloured_data(), CONFIG, anystory)
    learn_by_heart(task, data, replace(CONFIG, steps=2, batch_size=4), tmp_path)
    for half, state in zip(halves, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in half.state_dict().items())
    trained = dict(task.weights().files[0].tensors)
    start = {**halves[0].state_dict(), **halves[1].state_dict()}
    moved = {name.partition(".")[0] for name, value in trained.items() if not torch.equal(value, start[name].float())}
    assert moved == {"encoder", "reference_net", "injection"}


def test_float32_networks_are_copied_too(make, base, small_vae, clip, vision, tmp_path: Path):
    first, data = make()
    start = {name: value.clone() for name, value in first.weights().files[0].tensors.items()}
    second, _ = anystory_encoder(base, small_vae, clip, vision, data, CONFIG, first.anystory)
    learn_by_heart(second, data, replace(CONFIG, steps=1, batch_size=4), tmp_path)
    after = first.weights().files[0].tensors
    assert all(torch.equal(after[name], value) for name, value in start.items())


def test_a_fresh_network_grows_from_the_model(sdxl, vision):
    weights, sizes = fresh_network(sdxl, vision, CONFIG)
    unet = sdxl.model.diffusion_model.state_dict()
    name = "input_blocks.4.1.transformer_blocks.0"
    assert torch.equal(weights[f"reference_net.{name}.attn1.to_q.weight"], unet[f"{name}.attn1.to_q.weight"].float())
    assert torch.equal(weights["injection.subject.input_4_0.to_k.weight"], unet[f"{name}.attn2.to_k.weight"].float())
    assert sizes.queries == 4 and sizes.reference_size == 32 and sizes.text_width == 384


def test_the_papers_numbers():
    config = AnyStoryEncoderConfig()
    assert (config.batch_size, config.learning_rate, config.condition_dropout) == (64, 1e-4, 0.1)
    assert (config.queries, config.qformer_layers, config.reference_size) == (64, 4, 512)


def test_a_picture_can_be_drawn_meanwhile(make):
    task, _ = make(picture_every=5)
    before = {name: value.clone() for name, value in task.weights().files[0].tensors.items()}
    picture = task.picture()
    assert picture.shape == (64, 64, 3) and float(picture.min()) >= 0 and float(picture.max()) <= 1
    assert torch.equal(task.picture(), picture)
    assert all(torch.equal(value, before[name]) for name, value in task.weights().files[0].tensors.items())
    batch, positions = prepared_batch(task, coloured_data(), 2)
    losses(task, batch, positions).sum().backward()  # goes on as before


def test_bad_input_is_one_sentence(make, base, flux, vae, small_vae, clip, vision):
    data = coloured_data()
    task, _ = make(regions="masks")
    with pytest.raises(TrainingError, match="'colour 1' has no mask in the target picture"):
        prepared_batch(task, coloured_data(masks=False), 4)
    with pytest.raises(TrainingError, match="the sample has no subject"):
        task.prepare(replace(data.load(data.batch(0, 1)[0]), subjects=()), 0)
    cases = (
        ((flux, small_vae, clip, vision, data, CONFIG), "model", "it is no SDXL"),
        ((base, vae, clip, vision, data, CONFIG), "vae", "it makes latents of 16 channels, the model reads 4"),
    )
    for given, input_name, sentence in cases:
        with pytest.raises(TrainingError, match=sentence) as caught:
            anystory_encoder(*given)
        assert caught.value.input_name == input_name
    for text, sentence in {
        '{"regions": "all"}': "regions is 'all'; choose one of: picture, masks",
        '{"qformer_heads": 7}': "qformer_width is 1280, which 7 heads do not divide",
        '{"reference_size": 500}': "reference_size is 500; it must be a multiple of 8",
        '{"reference_dropout": 1.5}': "reference_dropout is 1.5; it must lie between 0 and 1",
    }.items():
        with pytest.raises(TrainingError, match=sentence):
            read_config(AnyStoryEncoderConfig, text)


def test_the_text_encoder_is_the_models(sdxl, sdxl_vae, vision, sdxl_clip, anystory):
    with pytest.raises(TrainingError, match="its text is 64 wide, the model reads 384") as caught:
        anystory_encoder(sdxl, sdxl_vae, sdxl_clip, vision, coloured_data(), CONFIG, anystory)
    assert caught.value.input_name == "clip"
