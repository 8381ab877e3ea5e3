"""The simplified ReferenceNet against the host's own U-Net with its cross-attention silenced."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY
from comfyui_ensemble.attention_patches.reference_net import ReferenceNet, build_unet, reference_weights, unet_sizes
from comfyui_ensemble.attention_patches.unet_layers import attention_layers, attention_modules

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "context_dim": 12,
    "adm_in_channels": 20 + 6 * 256,
    "num_heads": -1,
    "num_head_channels": 32,
}


def filled(network: torch.nn.Module, seed: int = 0) -> Any:
    """`network` with random weights, float64, of about the size at which hidden states keep theirs."""
    generator = torch.Generator().manual_seed(seed)
    for _, value in sorted(network.named_parameters()):
        fan_in = max(1, value[0].numel())
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        value.data = noise / fan_in**0.5 if value.ndim > 1 else 1 + 0.3 * noise
    return network


@pytest.fixture(scope="module")
def net() -> ReferenceNet:
    return filled(ReferenceNet(SIZES, torch.float64, "cpu", comfy.ops.disable_weight_init))


def random_input(size: tuple[int, int], batch: int = 1, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 4, *size, generator=generator, dtype=torch.float64)
    return latent, torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64)


def silenced(net: ReferenceNet) -> Any:
    """The host's U-Net of five channels with the weights of `net`; its cross-attentions run, and say nothing."""
    unet = filled(build_unet({**SIZES, "in_channels": 5}, torch.float64, "cpu", comfy.ops.disable_weight_init), 7)
    missing, unexpected = unet.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected and all(".attn2." in name or ".norm2." in name for name in missing)
    for _, block in attention_modules(unet):
        silent: Any = block.attn2
        for value in silent.to_out.parameters():
            value.zero_()
    return unet


def entering(unet: Any, x: torch.Tensor, vector: torch.Tensor) -> list[torch.Tensor]:
    """What the host's U-Net hands to its self-attentions at timestep 0, whatever the text."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.attn1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for _, block in attention_modules(unet)
    ]
    text = torch.randn(len(x), 3, SIZES["context_dim"], dtype=torch.float64)
    unet(x, torch.zeros(len(x)), text, vector.to(x).expand(len(x), -1))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_host_s_unet_without_cross_attention(net, sdxl, size, batch):
    latent, mask = random_input(size, batch)
    # The host's own way to SDXL's vector, for a picture without words.
    height, width = (8 * side for side in size)
    vector = sdxl.model.encode_adm(pooled_output=torch.zeros(1, 20), height=height, width=width)
    expected = entering(silenced(net), torch.cat((latent, mask), dim=1), vector)
    found = net(latent, mask)
    assert len(found) == len(expected) == len(attention_layers(net)) == 17
    for ours, hosts in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, hosts, rtol=1e-8, atol=1e-8)


def test_a_state_for_every_layer_in_its_size(net):
    layers = attention_layers(build_unet(SIZES, torch.float32, "meta", comfy.ops.disable_weight_init))
    states = net(*random_input((16, 24)))
    for layer, state in zip(layers, states, strict=True):
        assert state.shape == (1, (16 // layer.factor) * (24 // layer.factor), layer.width)


def test_the_mask_says_what_the_subject_is(net):
    latent, mask = random_input((16, 16))
    for one, other in zip(net(latent, mask), net(latent, 1 - mask), strict=True):
        assert not torch.allclose(one, other)


def test_nothing_behind_the_last_self_attention_is_run(net):
    """Its weights may be anything."""
    spoiled = ReferenceNet(SIZES, torch.float64, "cpu", comfy.ops.disable_weight_init)
    spoiled.load_state_dict(net.state_dict())
    last_layer, last = list(attention_modules(spoiled))[-1]
    unused = [last.attn1, last.norm3, last.ff, *spoiled.output_blocks[last_layer.block[1] + 1 :], spoiled.out]
    for module in unused:
        for value in module.parameters():
            value.fill_(torch.nan)
    given = random_input((16, 16))
    for one, other in zip(spoiled(*given), net(*given), strict=True):
        assert torch.equal(one, other)


def test_fresh_weights_are_the_unet_s_and_blind_to_the_mask(sdxl):
    sizes = unet_sizes(sdxl.model.model_config.unet_config)
    fresh = ReferenceNet(sizes, torch.float64, "cpu", comfy.ops.manual_cast)
    unet = sdxl.model.diffusion_model
    fresh.load_state_dict(reference_weights(unet.state_dict()))
    latent, mask = random_input((16, 16))
    states = fresh(latent, mask)
    for one, other in zip(states, fresh(latent, torch.zeros_like(mask)), strict=True):
        assert torch.equal(one, other)
    # Before the first cross-attention the two networks are one.
    vector = sdxl.model.encode_adm(pooled_output=torch.zeros(1, 384), height=128, width=128)
    seen: list[torch.Tensor] = []
    first = unet.input_blocks[4][1].transformer_blocks[0].attn1
    hook = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    unet(latent.float(), torch.zeros(1), torch.zeros(1, 3, 384), vector)
    hook.remove()
    torch.testing.assert_close(states[0].float(), seen[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights, dtype", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_every_precision(net, weights, dtype):
    cast = ReferenceNet(SIZES, weights, "cpu", comfy.ops.manual_cast)
    cast.load_state_dict(net.state_dict())
    rounded = ReferenceNet(SIZES, torch.float64, "cpu", comfy.ops.disable_weight_init)
    rounded.load_state_dict({name: value.double() for name, value in cast.state_dict().items()})
    latent, mask = random_input((16, 16))
    for found, exact in zip(cast(latent.to(dtype), mask.to(dtype)), rounded(latent, mask), strict=True):
        assert found.dtype == dtype
        error = (found.double() - exact).square().mean() / exact.square().mean()
        assert error < (1e-8 if dtype == torch.float32 else 1e-2)


def test_the_paper_s_parameter_counts():
    """Table 1: 2.57 B and 2.02 B; the mask adds a channel to the first kernel."""
    unet = build_unet(SDXL_ANYSTORY.unet, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    net = ReferenceNet(SDXL_ANYSTORY.unet, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    whole, simplified = (sum(value.numel() for value in module.parameters()) for module in (unet, net))
    assert whole == 2_567_463_684
    assert simplified == 2_021_626_884 + 9 * 320
    assert len(attention_layers(net)) == 70


@pytest.mark.parametrize(
    "change, message",
    [
        ({"adm_in_channels": 1535}, "no room for SDXL's size conditions"),
        ({"transformer_depth_output": [0] * 9}, "the last transformer is in the middle part"),
    ],
)
def test_a_unet_of_another_kind(change, message):
    with pytest.raises(ValueError, match=message):
        ReferenceNet({**SIZES, **change}, torch.float32, "meta", comfy.ops.disable_weight_init)
