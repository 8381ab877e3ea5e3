"""Stage 2 of AnyStory's training, with the host's own models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory import apply_anystory
from comfyui_ensemble.attention_patches.anystory_assign import owners_of
from comfyui_ensemble.attention_patches.anystory_call import NO_REFERENCES, Settings
from comfyui_ensemble.attention_patches.anystory_features import Seen, encode_features
from comfyui_ensemble.attention_patches.anystory_file import load_anystory, make_anystory
from comfyui_ensemble.attention_patches.anystory_router import gumbel_assignment, gumbel_noise, straight_through
from comfyui_ensemble.attention_patches.anystory_rows import RowCall, weighted_subject_attention, with_rows
from comfyui_ensemble.models_info.registry import ANYSTORY_NETWORKS
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from comfyui_ensemble.training.anystory_encoder import fresh_network
from comfyui_ensemble.training.anystory_router import (
    AnyStoryRouterTask,
    anystory_router,
    overlap,
    routing_loss,
)
from comfyui_ensemble.training.anystory_subjects import gather_masks, gather_subjects
from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.randomness import generator
from comfyui_ensemble.training.weights import save_weights
from devtools.coloured_scenes import NETWORK, QUICK, brief_base, coloured_data, in_double, lively_vae, small_sdxl
from devtools.training_checks import UNSEEN, disturb, learn_by_heart, losses, prepared_batch, slopes

CONFIG = AnyStoryRouterConfig(**QUICK)


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
def base():
    with torch.inference_mode():
        return small_sdxl(fresh=False)


@pytest.fixture(scope="module")
def stage_one(base, vision):
    """What stage 1 begins with; a router learns beside it as well."""
    with torch.inference_mode():
        return make_anystory(*fresh_network(base, vision, AnyStoryEncoderConfig(**QUICK, **NETWORK)))


@pytest.fixture
def make(base, small_vae, clip, vision, stage_one):
    """make(**settings): the task and its data."""

    def build(data: Any = None, **settings: Any) -> tuple[AnyStoryRouterTask, Any]:
        given = data or coloured_data()
        return anystory_router(base, small_vae, clip, vision, given, replace(CONFIG, **settings), stage_one)

    return build


# ---------------------------------------------------------------- the formulas


def some_maps(rows: int = 3, pixels: int = 7, entries: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, pixels, entries, generator=random, dtype=torch.float64)
    owners = torch.randint(0, entries, (rows, pixels), generator=random)
    absent = torch.zeros(rows, entries, dtype=torch.bool)
    absent[1, 1:3] = True
    owners[1] = torch.where(owners[1] == 0, 0, entries - 1)
    return logits.masked_fill(absent.unsqueeze(1), -math.inf), owners, absent


def test_routing_loss_is_equation_4():
    """A mean over pixels and over the subjects that are there; the background has no term of its own."""
    logits, owners, absent = some_maps()
    found = routing_loss(logits, owners, absent)
    for row in range(3):
        subjects = [entry for entry in range(3) if not absent[row, entry]]
        total = 0.0
        for entry in subjects:
            for pixel in range(7):
                parts = [math.exp(float(each)) for each in logits[row, pixel]]
                total += (parts[entry] / sum(parts) - float(owners[row, pixel] == entry)) ** 2
        assert float(found[row]) == pytest.approx(total / 7 / len(subjects), rel=1e-12)


def test_routing_loss_against_differences():
    logits, owners, absent = some_maps()
    assert torch.autograd.gradcheck(
        lambda given: routing_loss(given, owners[:1], absent[:1]), logits[:1].requires_grad_()
    )
    logits = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(routing_loss(logits, owners, absent).sum(), logits)
    assert gradient.isfinite().all() and not gradient[1, :, 1:3].any()


def test_overlap_counts_pixels():
    logits, owners, absent = some_maps()
    found, best = overlap(logits, owners, absent), logits.argmax(dim=-1)
    for row in range(3):
        shares = []
        for entry in range(3):
            mine, wanted = best[row] == entry, owners[row] == entry
            if not absent[row, entry] and (mine | wanted).any():
                shares.append(int((mine & wanted).sum()) / int((mine | wanted).sum()))
        assert float(found[row]) == pytest.approx(sum(shares) / max(1, len(shares)))


def test_straight_through_is_one_hot_forwards_and_soft_backwards():
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hard = straight_through(logits, 0.7)
    torch.testing.assert_close(hard, torch.nn.functional.one_hot(logits.argmax(dim=-1), 3).double())
    (gradient,) = torch.autograd.grad((hard * weights).sum(), logits)
    soft = torch.softmax(logits / 0.7, dim=-1)
    (wanted,) = torch.autograd.grad((soft * weights).sum(), logits)
    torch.testing.assert_close(gradient, wanted)
    noise = gumbel_noise((5, 3), torch.Generator().manual_seed(2), dtype=torch.float64)
    sampled = gumbel_assignment(logits, 0.7, torch.Generator().manual_seed(2))
    assert torch.equal(sampled, straight_through(logits + noise, 0.7))


def test_the_weights_gradient_is_what_each_entry_would_give_a_pixel():
    """d loss / d sigma_i = <d loss / d Z, softmax(Q K_i / sqrt d) V_i>, also for entries that do not own the pixel."""
    random = torch.Generator().manual_seed(0)
    q, keys, values, wish = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((1, 6, 8), (1, 3, 5, 8), (1, 3, 5, 8), (1, 6, 8))
    )
    shares = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 2, 1, 0]]), 3).double().requires_grad_()

    def attention(q, k, v, mask):
        return torch.softmax(q @ k.mT / math.sqrt(8), dim=-1) @ v

    out = weighted_subject_attention(attention, q, shares, keys, values)
    (gradient,) = torch.autograd.grad((out * wish).sum(), shares)
    for pixel in range(6):
        for entry in range(3):
            given = attention(q[0, pixel][None], keys[0, entry], values[0, entry], None)[0]
            assert float(gradient[0, pixel, entry]) == pytest.approx(float(given @ wish[0, pixel]))


# ---------------------------------------------------------------- the training


def test_it_learns_four_pictures_by_heart(small_vae, clip, vision, tmp_path: Path):
    """On a model that can draw them."""
    base, data = brief_base(small_vae, clip, tmp_path / "base"), coloured_data()
    start = make_anystory(*fresh_network(base, vision, AnyStoryEncoderConfig(**QUICK, **NETWORK)))
    task, _ = anystory_router(base, small_vae, clip, vision, data, replace(CONFIG, steps=60), start)
    batch, _ = prepared_batch(task, data, 4)

    def now() -> dict[str, float]:
        with torch.no_grad():
            found = task.losses(batch * 4, range(UNSEEN, UNSEEN + 16))
        return {name: float(value.mean()) for name, value in found.items()}

    before = now()
    learn_by_heart(task, data, task.settings, tmp_path)
    after = now()
    assert after["routing"] < 0.45 * before["routing"]
    assert after["overlap"] > 0.75 > 0.6 > before["overlap"]
    assert after["loss"] == pytest.approx(after["diffusion"] + 0.1 * after["routing"], rel=1e-5)


class Part:
    """The same task, with one of its logged losses as the one that is minimised."""

    def __init__(self, task: AnyStoryRouterTask, part: str) -> None:
        self.task, self.part = task, part

    def modules(self):
        return self.task.modules()

    def losses(self, batch, positions):
        return {"loss": self.task.losses(batch, positions)[self.part]}


def part_of(task: AnyStoryRouterTask, part: str) -> Any:
    return Part(task, part)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_routing_loss_against_differences(make, monkeypatch, checkpointing):
    """While nothing is injected, maps do not hang on earlier choices, which have no difference quotient."""
    monkeypatch.setattr(RowCall.__init__, "__defaults__", (0.0, NO_REFERENCES))
    task, data = make(gradient_checkpointing=checkpointing)
    disturb(task)
    batch, positions = prepared_batch(task, data, 3)
    batch = in_double(task, batch)
    assert sorted(task.modules()) == ["router_encoder", "routers"]
    for name in task.modules():
        said, found = slopes(part_of(task, "routing"), name, batch, positions, 1e-5)
        assert found == pytest.approx(said, rel=1e-4), name


def soft_assignment(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Without the estimator: the Gumbel-softmax itself, both ways."""
    return torch.softmax(logits / temperature, dim=-1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_whole_loss_along_the_soft_path(make, monkeypatch, checkpointing):
    """With soft maps all the way the diffusion loss is smooth in the routers but for where references are looked at."""
    monkeypatch.setattr("comfyui_ensemble.attention_patches.anystory_assign.straight_through", soft_assignment)
    monkeypatch.setattr(RowCall.__init__, "__defaults__", (1.0, -1e4))  # references weigh nothing
    task, data = make(gradient_checkpointing=checkpointing)
    disturb(task)
    batch, positions = prepared_batch(task, data, 3)
    batch = in_double(task, batch)
    for name in task.modules():
        for loss in ("loss", "diffusion"):
            said, found = slopes(part_of(task, loss), name, batch, positions, 1e-4)
            assert abs(said) > 1e-4 and found == pytest.approx(said, rel=2e-3), (name, loss)


def test_checkpointing_changes_nothing(make):
    found = []
    for checkpointing in (False, True):
        task, data = make(gradient_checkpointing=checkpointing)
        disturb(task)
        batch, positions = prepared_batch(task, data, 3)
        with host_in_training():
            values = task.losses(batch, positions)
        parameters = [value for module in task.modules().values() for value in module.parameters()]
        found.append((values, torch.autograd.grad(values["loss"].sum(), parameters)))
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name]), name
    for plain, checkpointed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_the_router_alone_learns(make):
    task, data = make()
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    losses(task, batch, positions).sum().backward()
    assert all(
        value.grad is not None and value.grad.any() for each in task.modules().values() for value in each.parameters()
    )
    encoding, injecting = task.anystory.encoding.model, task.anystory.injecting.model
    others = (encoding.encoder, encoding.reference_net, injecting.injection, task.model.network)
    assert not any(value.requires_grad or value.grad is not None for each in others for value in each.parameters())


def test_the_picture_teaches_the_router_too(make):
    """Through the straight-through estimator, all but the coarse map, which only chooses where to look."""
    task, data = make(routing_weight=0.0)
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    losses(task, batch, positions).sum().backward()
    for name, value in task.modules()["routers"].named_parameters():
        assert value.grad.any() != ("coarse" in name), name


def test_a_samples_loss_is_its_own(make):
    """Whoever is in the batch with it, in whatever order, with more subjects, of another size."""
    task, data = make(coloured_data(subjects=(1, 3, 2)), condition_dropout=0.4)
    _, wide = make(coloured_data(96))
    disturb(task)
    batch, positions = prepared_batch(task, data, 4)
    more, later = prepared_batch(task, wide, 4, step=1)
    batch, positions = [*batch, *more], [*positions, *later]
    assert len({len(each["clip"]) for each in batch}) > 1 and len({each["latent"].shape for each in batch}) == 2
    with torch.no_grad():
        together = task.losses(batch, positions)
        backwards = task.losses(batch[::-1], positions[::-1])
        alone = [task.losses([sample], [place]) for sample, place in zip(batch, positions, strict=True)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([each[name] for each in alone]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value, backwards[name].flip(0), rtol=1e-4, atol=1e-4)


def test_noise_goes_by_the_position_and_the_layer(make):
    task, data = make()
    batch, positions = prepared_batch(task, data, 4)
    seen = gather_subjects(batch, task.zero, task.device)
    layers = task.anystory.injecting.model.injection.layers
    noise = task._noise(seen.absent, positions, layers[0], 9)
    assert torch.equal(noise, task._noise(seen.absent, positions, layers[0], 9))
    assert not torch.equal(noise, task._noise(seen.absent, positions, layers[1], 9))
    drawn = generator(task.config.seed, f"gumbel/{layers[0].name}", positions[0])
    missing = seen.absent[0]
    assert torch.equal(noise[0][:, ~missing], gumbel_noise((9, int((~missing).sum())), drawn))
    assert missing.any() and not noise[0][:, missing].any()


def test_maps_are_held_against_the_masks_of_each_layers_size(make):
    task, data = make()
    batch, positions = prepared_batch(task, data, 4)
    seen = gather_subjects(batch, task.zero, task.device)
    routed = task._routed(seen, positions)
    with torch.no_grad():
        call = RowCall(task.anystory.injecting.model, task._subjects(seen, positions), routed)
        prompts = [[[each["text"][None, :3], {"pooled_output": each["pooled"][None]}]] for each in batch]
        x = torch.stack([each["latent"] for each in batch])
        task.model.predict(x, torch.ones(4), prompts, with_rows(task.model.patcher, call))
        losses_, overlaps = task._routing(routed, gather_masks(batch, task.device))
    masks = gather_masks(batch, task.device)
    layers = task.anystory.injecting.model.injection.layers
    total = torch.zeros(4)
    for layer in layers:
        assert routed.grids[layer.name] == (8 // layer.factor, 8 // layer.factor)
        owners = owners_of(masks, routed.grids[layer.name])
        for maps in (routed.logits[layer.name].refined, routed.logits[layer.name].coarse):
            total += routing_loss(maps, owners, routed.absent)
    torch.testing.assert_close(losses_, total / len(layers))
    assert losses_.shape == overlaps.shape == (4,)


def test_the_file_holds_what_was_trained(make, base, tmp_path: Path, monkeypatch, small_vae, clip, vision):
    """A loaded file finds what the routers under training find; what stage 1 made is in it, bit for bit."""
    folder = tmp_path / ANYSTORY_NETWORKS
    monkeypatch.setitem(folder_paths.folder_names_and_paths, ANYSTORY_NETWORKS, ([str(folder)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    task, data = make()
    disturb(task)
    start = {name: value.clone() for name, value in task.anystory.encoding.model.encoder.state_dict().items()}
    batch, positions = prepared_batch(task, data, 4)
    (path,) = save_weights(task.weights(), "mine")
    with torch.inference_mode():
        loaded = load_anystory(path)
    assert all(torch.equal(value, start[name]) for name, value in loaded.encoding.model.encoder.state_dict().items())
    again, _ = anystory_router(base, small_vae, clip, vision, data, task.settings, loaded)
    assert torch.equal(losses(again, batch, positions), losses(task, batch, positions))
    sample = data.load(data.batch(0, 4)[1])
    maps = []
    for anystory in (task.anystory, loaded):
        seen = [task.encoders.subject(each, task.sizes.reference_size) for each in sample.subjects]
        with torch.no_grad():
            looked = [Seen(each.clip, each.latent, each.mask) for each in seen]
            features = encode_features(anystory, [each.name for each in sample.subjects], looked, task.zero)
            patched, routing = apply_anystory(task.model.patcher, features, Settings(1.0, 0.0))
            prompt = [[batch[1]["text"][None], {"pooled_output": batch[1]["pooled"][None]}]]
            denoised = task.model.predict(batch[1]["latent"][None], torch.ones(1), [prompt], patched)
        maps.append((denoised, routing))
    assert torch.equal(maps[0][0], maps[1][0])


def test_bad_input_is_one_sentence(make, sdxl, sdxl_vae, small_vae, clip, vision, stage_one):
    task, _ = make()
    with pytest.raises(TrainingError, match="'colour 1' has no mask in the target picture"):
        prepared_batch(task, coloured_data(masks=False), 4)
    with pytest.raises(TrainingError, match="its layers are not those the AnyStory network was made for") as caught:
        anystory_router(sdxl, small_vae, clip, vision, coloured_data(), CONFIG, stage_one)
    assert caught.value.input_name == "model"
    for text, sentence in {
        '{"temperature": 0}': "temperature is 0.0; it must be above 0",
        '{"routing_weight": -1}': "routing_weight is -1.0; it must be at least 0",
        '{"routing_wait": 1}': "there is no setting 'routing_wait'; 'routing_weight' is probably meant",
    }.items():
        with pytest.raises(TrainingError, match=sentence):
            read_config(AnyStoryRouterConfig, text)


def test_the_papers_numbers():
    config = AnyStoryRouterConfig()
    assert (config.batch_size, config.learning_rate, config.routing_weight) == (64, 1e-4, 0.1)
