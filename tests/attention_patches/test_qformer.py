"""The QFormer against loops written from its description, in float64."""

from __future__ import annotations

import math

import comfy.ops
import pytest
import torch

from comfyui_ensemble.attention_patches.qformer import QFormer

WIDTH, HEADS, CLIP_WIDTH, OUT_WIDTH = 8, 2, 6, 10


def make(queries: int = 3, layers: int = 4, dtype: torch.dtype = torch.float64, operations=comfy.ops.manual_cast):
    network = QFormer(queries, WIDTH, HEADS, layers, CLIP_WIDTH, OUT_WIDTH, dtype, "cpu", operations)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in sorted(network.state_dict().items())
    }
    network.load_state_dict(weights)
    return network


def features(batch: int = 2, patches: int = 5, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, patches, CLIP_WIDTH, generator=generator, dtype=torch.float64)


class Oracle:
    """One picture through the network, number by number."""

    def __init__(self, network: QFormer) -> None:
        self.weights = {name: value.tolist() for name, value in network.state_dict().items()}
        self.layers = len(network.layers)

    def linear(self, name: str, x: list[float]) -> list[float]:
        bias = self.weights.get(f"{name}.bias", [0.0] * len(self.weights[f"{name}.weight"]))
        return [
            sum(w * value for w, value in zip(row, x, strict=True)) + offset
            for row, offset in zip(self.weights[f"{name}.weight"], bias, strict=True)
        ]

    def norm(self, name: str, x: list[float]) -> list[float]:
        mean = sum(x) / len(x)
        spread = math.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + 1e-5)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return [(value - mean) / spread * w + b for value, w, b in zip(x, weight, bias, strict=True)]

    def attention(self, name: str, asking: list[list[float]], asked: list[list[float]]) -> list[list[float]]:
        queries = [self.linear(f"{name}.to_q", x) for x in asking]
        keys = [self.linear(f"{name}.to_k", x) for x in asked]
        values = [self.linear(f"{name}.to_v", x) for x in asked]
        size, found = WIDTH // HEADS, []
        for query in queries:
            out = []
            for head in range(HEADS):
                part = range(head * size, (head + 1) * size)
                logits = [sum(query[c] * key[c] for c in part) / math.sqrt(size) for key in keys]
                exponents = [math.exp(logit - max(logits)) for logit in logits]
                shares = [exponent / sum(exponents) for exponent in exponents]
                out += [sum(share * value[c] for share, value in zip(shares, values, strict=True)) for c in part]
            found.append(self.linear(f"{name}.to_out.0", out))
        return found

    def feed(self, name: str, x: list[float]) -> list[float]:
        inner = [h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in self.linear(f"{name}.net.0.0", x)]
        return self.linear(f"{name}.net.2", inner)

    def __call__(self, picture: list[list[float]]) -> list[list[float]]:
        seen = [self.norm("feature_norm", patch) for patch in picture]
        tokens = self.weights["queries.weight"]
        for number in range(self.layers):
            layer = f"layers.{number}"
            entering = [self.norm(f"{layer}.self_norm", token) for token in tokens]
            tokens = added(tokens, self.attention(f"{layer}.self_attention", entering, entering))
            entering = [self.norm(f"{layer}.cross_norm", token) for token in tokens]
            tokens = added(tokens, self.attention(f"{layer}.cross_attention", entering, seen))
            entering = [self.norm(f"{layer}.feed_norm", token) for token in tokens]
            tokens = added(tokens, [self.feed(f"{layer}.feed", token) for token in entering])
        return [self.norm("out_norm", self.linear("to_out", token)) for token in tokens]


def added(tokens: list[list[float]], more: list[list[float]]) -> list[list[float]]:
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(tokens, more, strict=True)]


@pytest.mark.parametrize("queries, layers", [(3, 4), (1, 4), (64, 1)])
def test_it_is_what_the_description_says(queries, layers):
    network, pictures = make(queries, layers), features()
    oracle = Oracle(network)
    expected = torch.tensor([oracle(picture) for picture in pictures.tolist()], dtype=torch.float64)
    found = network(pictures)
    assert found.shape == (2, queries, OUT_WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patches", [1, 257])
def test_any_number_of_patches_in_any_order(patches):
    """CLIP has put a patch's place into its features; the QFormer needs no order of its own."""
    network, pictures = make(), features(1, patches)
    torch.testing.assert_close(network(pictures.flip(1)), network(pictures))


def test_a_picture_does_not_depend_on_the_others_of_its_batch():
    network, pictures = make(), features(3)
    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), alone)
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_in_the_features_precision(weights, dtype):
    network, pictures = make(dtype=weights), features()
    found = network(pictures.to(dtype))
    assert found.dtype == dtype
    exact = make()
    exact.load_state_dict({name: value.double() for name, value in network.state_dict().items()})
    torch.testing.assert_close(found.double(), exact(pictures), rtol=0, atol=1e-4 if dtype == torch.float32 else 0.3)


def test_all_weights_are_trainable():
    with torch.inference_mode(False), torch.enable_grad():
        network = make().requires_grad_(True)
        network(features().clone()).square().mul(torch.linspace(-1, 1, OUT_WIDTH)).sum().backward()
        silent = {name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()}
    assert silent == set()
