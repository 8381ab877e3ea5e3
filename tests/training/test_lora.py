"""LoRAs as they are trained, and as the host's stock loader reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import nn

from comfyui_ensemble.training.lora import LowRank, adapted_layers, load_lora_state
from comfyui_ensemble.training.model import TrainableModel, own_copy
from comfyui_ensemble.training.randomness import generator
from devtools.gradients import flux_prompt, random, sdxl_prompt, shake_loras, small_flux, small_sdxl

BATCHES = {
    "FLUX": (small_flux, random(0, 1, 16, 8, 8), torch.tensor([0.7]), [flux_prompt(1)]),
    "SDXL": (small_sdxl, random(0, 1, 4, 8, 8), torch.tensor([3.0]), [sdxl_prompt(1)]),
}


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def trained_lora(base: ModelPatcher) -> TrainableModel:
    trained = TrainableModel(base, "lora", rank=3, alpha=2.0)
    shake_loras(trained)
    return trained


def with_stock_loader(base: ModelPatcher, state: dict[str, torch.Tensor], folder: Path) -> ModelPatcher:
    """As the node Load LoRA does it, through a file."""
    path = folder / "trained.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    loaded, _ = comfy.sd.load_lora_for_models(base, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    assert loaded is not None
    return loaded


def loras_of(trained: TrainableModel) -> Any:
    return trained.modules()["lora"]


def predicted(model: ModelPatcher, x, sigma, prompts) -> torch.Tensor:
    with torch.no_grad():
        return TrainableModel(model, "frozen").predict(x, sigma, prompts)


@pytest.mark.parametrize("name", BATCHES)
def test_the_stock_loader_gives_the_model_that_was_trained(name, tmp_path, caplog):
    load, x, sigma, prompts = BATCHES[name]
    base = load()
    trained = trained_lora(base)
    with torch.no_grad():
        while_training = trained.predict(x, sigma, prompts)
    before = predicted(base, x, sigma, prompts)
    loaded = with_stock_loader(base, trained.lora_state(), tmp_path)
    assert "not loaded" not in caplog.text
    assert len(loaded.patches) == len(loras_of(trained)) > 20
    torch.testing.assert_close(predicted(loaded, x, sigma, prompts), while_training, rtol=1e-3, atol=2e-5)
    assert (while_training - before).abs().max() > 0.01


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BATCHES)
def test_the_stock_loader_on_a_model_in_half_precision(name, half, tmp_path):
    """The loader rounds W + BA to half precision, in training BA is whole: both are as near to float32's model."""
    load, x, sigma, prompts = BATCHES[name]
    base, exact = load(), load()
    exact.model.diffusion_model.to(half).float()  # the same weights
    base.model.diffusion_model.to(half).dtype = half
    trained = trained_lora(base)
    state = trained.lora_state()
    with torch.no_grad():
        while_training = trained.predict(x, sigma, prompts)
    loaded = predicted(with_stock_loader(base, state, tmp_path), x, sigma, prompts)
    right = predicted(with_stock_loader(exact, state, tmp_path), x, sigma, prompts)
    change = (right - predicted(exact, x, sigma, prompts)).norm()
    off = [float((each - right).norm() / change) for each in (loaded, while_training)]
    assert max(off) < {torch.bfloat16: 0.15, torch.float16: 0.02}[half] and off[0] < 3 * off[1], off


@pytest.mark.parametrize("name", BATCHES)
def test_a_fresh_lora_changes_nothing(name):
    load, x, sigma, prompts = BATCHES[name]
    base = load()
    trained = TrainableModel(base, "lora", rank=3)
    assert torch.equal(trained.predict(x, sigma, prompts), TrainableModel(base, "frozen").predict(x, sigma, prompts))


def convolved(image: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(channels, h, w) with (out, channels, k, k), pixel by pixel."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    size = kernel.shape[-1]
    rows, columns = ((side - size) // stride + 1 for side in image.shape[1:])
    out = np.zeros((len(kernel), rows, columns))
    for y in range(rows):
        for x in range(columns):
            part = image[:, y * stride : y * stride + size, x * stride : x * stride + size]
            out[:, y, x] = (kernel * part).sum(axis=(1, 2, 3))
    return out


def test_a_linear_layer_follows_the_paper():
    """Eq. 3 of LoRA: (alpha / r) B A x."""
    lora = LowRank(nn.Linear(5, 7), 3, 2.0, generator(0, "lora", 0)).double()
    nn.init.normal_(lora.up)
    x = random(1, 2, 4, 5).double()
    expected = x.numpy() @ (2 / 3 * lora.up.detach().numpy() @ lora.down.detach().numpy()).T
    np.testing.assert_allclose(lora(x).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_a_convolution_follows_the_paper(size, stride, padding):
    layer = nn.Conv2d(4, 6, size, stride, padding)
    lora = LowRank(layer, 2, 3.0, generator(0, "lora", 0)).double()
    nn.init.normal_(lora.up)
    x = random(1, 1, 4, 6, 5).double()
    down, up = lora.down.detach().numpy(), lora.up.detach().numpy()[:, :, 0, 0]
    kernel = 3 / 2 * np.einsum("or,rcyx->ocyx", up, down)
    expected = convolved(x[0].numpy(), kernel, stride, padding)
    np.testing.assert_allclose(lora(x)[0].detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_first_values_are_those_of_a_linear_layer_and_depend_on_the_seed_alone():
    loras = [loras_of(TrainableModel(small_flux(), "lora", rank=8, seed=seed)) for seed in (0, 0, 1)]
    for name, lora in loras[0].items():
        assert torch.equal(lora.down, loras[1][name].down) and not torch.equal(lora.down, loras[2][name].down)
        bound = 1 / math.sqrt(lora.down[0].numel())
        assert not lora.up.any() and lora.down.abs().max() <= bound and lora.down.std() > 0.4 * bound


def test_which_layers_are_adapted():
    flux = adapted_layers(small_flux().model.diffusion_model)
    assert (
        len(flux) == 2 * 2 * 5 + 2 * 3
    )  # modulation, qkv, proj, two of the MLP for each stream; modulation, linear1, linear2
    unet = adapted_layers(small_sdxl().model.diffusion_model)
    kinds = {type(layer).__mro__[1] for layer in unet.values()}
    assert kinds == {nn.Linear, nn.Conv2d} and "out.2" not in unet and "time_embed.0" not in unet
    chosen = TrainableModel(small_flux(), "lora", rank=2, layers=lambda name: name.endswith("_attn.qkv"))
    assert len(loras_of(chosen)) == 4


def test_masters_are_float32_and_alone_ask_for_gradients():
    base = small_flux()
    base.model.diffusion_model.to(torch.bfloat16).dtype = torch.bfloat16
    trained = TrainableModel(base, "lora", rank=3)
    assert {value.dtype for value in trained.modules()["lora"].parameters()} == {torch.float32}
    assert {value.dtype for value in trained.network.parameters()} == {torch.bfloat16}
    assert not [value for value in trained.patcher.model.parameters() if value.requires_grad]


def test_a_lora_that_was_there_before_is_part_of_the_base(tmp_path):
    load, x, sigma, prompts = BATCHES["FLUX"]
    base = load()
    first = with_stock_loader(base, trained_lora(base).lora_state(), tmp_path)
    seen = predicted(first, x, sigma, prompts)
    on_top = TrainableModel(first, "lora", rank=3)
    assert torch.equal(on_top.predict(x, sigma, prompts), seen)
    assert on_top.identity() != TrainableModel(base, "frozen").identity()
    assert not torch.equal(seen, predicted(base, x, sigma, prompts))  # the base itself is as it was


def test_values_can_be_put_back_and_those_of_another_lora_cannot():
    trained = trained_lora(small_flux())
    fresh = TrainableModel(small_flux(), "lora", rank=3)
    load_lora_state(loras_of(fresh), trained.lora_state())
    for name, value in trained.lora_state().items():
        if not name.endswith("alpha"):
            assert torch.equal(fresh.lora_state()[name], value)
    with pytest.raises(ValueError, match="of the shape"):
        load_lora_state(loras_of(TrainableModel(small_flux(), "lora", rank=4)), trained.lora_state())


def test_the_state_is_a_copy():
    trained = trained_lora(small_flux())
    state = trained.lora_state()
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for value in trained.modules()["lora"].parameters():
            value += 1
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_keys_are_those_the_host_knows():
    base = small_sdxl()
    known = comfy.lora.model_lora_keys_unet(own_copy(base).model, {})
    for name in TrainableModel(base, "lora", rank=1).lora_state():
        assert name.rsplit(".lora_", 1)[0].removesuffix(".alpha") in known
