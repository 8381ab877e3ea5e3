"""AnyStory with a cast of its own in every row: against loops written from the paper, and against inference."""

from __future__ import annotations

import itertools
import math

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP

from comfyui_ensemble.attention_patches.anystory import apply_anystory
from comfyui_ensemble.attention_patches.anystory_assign import GivenMasks, Routed, everywhere
from comfyui_ensemble.attention_patches.anystory_call import Settings
from comfyui_ensemble.attention_patches.anystory_injection import reference_attention, subject_attention
from comfyui_ensemble.attention_patches.anystory_router import AnyStoryRouter
from comfyui_ensemble.attention_patches.anystory_routing import split_by_owner
from comfyui_ensemble.attention_patches.anystory_rows import (
    RowCall,
    RowSubjects,
    biased_reference_attention,
    weighted_subject_attention,
    with_rows,
)
from comfyui_ensemble.training.model import TrainableModel

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE
ROWS, PIXELS, ENTRIES = 3, 10, 4


def attention(q, k, v, mask):
    return optimized_attention(q, k, v, HEADS, mask=mask)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_owners(entries: int = ENTRIES) -> torch.Tensor:
    return torch.randint(0, entries, (ROWS, PIXELS), generator=torch.Generator().manual_seed(3))


def attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, biases: list[float]) -> torch.Tensor:
    """Softmax attention of one pixel, a head at a time."""
    heads = []
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        logits = [
            float(query[part] @ key[part]) / math.sqrt(SIZE) + bias for key, bias in zip(keys, biases, strict=True)
        ]
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        found = sum(weight * value[part] for weight, value in zip(weights, values, strict=True)) / sum(weights)
        heads.append(found)
    return torch.cat(heads)


def test_equation_5_is_a_sum_over_the_entries():
    q, shares = random(ROWS, PIXELS, WIDTH, seed=0), random(ROWS, PIXELS, ENTRIES, seed=1).softmax(dim=-1)
    keys, values = random(ROWS, ENTRIES, 5, WIDTH, seed=2), random(ROWS, ENTRIES, 5, WIDTH, seed=3)
    found = weighted_subject_attention(attention, q, shares, keys, values)
    for row, pixel in itertools.product(range(ROWS), range(PIXELS)):
        wanted = sum(
            shares[row, pixel, entry] * attended(q[row, pixel], keys[row, entry], values[row, entry], [0.0] * 5)
            for entry in range(ENTRIES)
        )
        torch.testing.assert_close(found[row, pixel], wanted, rtol=1e-9, atol=1e-9)


def test_equation_5_is_what_inference_computes_where_every_pixel_has_one_owner():
    q, owners = random(ROWS, PIXELS, WIDTH, seed=0), some_owners()
    keys, values = random(ENTRIES, 5, WIDTH, seed=2), random(ENTRIES, 5, WIDTH, seed=3)
    shares = torch.nn.functional.one_hot(owners, ENTRIES).double()
    found = weighted_subject_attention(
        attention, q, shares, keys.expand(ROWS, -1, -1, -1), values.expand(ROWS, -1, -1, -1)
    )
    entries = list(zip(keys, values, strict=True))
    members = dict(enumerate(split_by_owner(owners, ENTRIES)))
    torch.testing.assert_close(found, subject_attention(attention, q, members, entries, entries[-1]))


@pytest.mark.parametrize("gamma", [0.0, -0.7])
def test_equations_6_to_8_are_what_inference_computes(gamma):
    q, k, v = (random(ROWS, PIXELS, WIDTH, seed=seed) for seed in range(3))
    owners, subjects = some_owners(), ENTRIES - 1
    keys, values = random(subjects, 6, WIDTH, seed=4), random(subjects, 6, WIDTH, seed=5)
    seen = owners.unsqueeze(-1) == torch.arange(subjects)
    rows = keys.expand(ROWS, -1, -1, -1), values.expand(ROWS, -1, -1, -1)
    found = biased_reference_attention(attention, q, k, v, rows, seen, gamma)
    members = dict(enumerate(split_by_owner(owners, ENTRIES)))
    references = [*zip(keys, values, strict=True), None]
    torch.testing.assert_close(found, reference_attention(attention, q, k, v, members, references, gamma))
    for row, pixel in itertools.product(range(ROWS), range(PIXELS)):
        biases = [0.0] * PIXELS + [
            gamma if owners[row, pixel] == i else -math.inf for i in range(subjects) for _ in range(6)
        ]
        whole = [torch.cat((own[row], other.flatten(0, 1))) for own, other in ((k, keys), (v, values))]
        wanted = attended(q[row, pixel], whole[0], whole[1], biases)
        torch.testing.assert_close(found[row, pixel], wanted, rtol=1e-9, atol=1e-9)


def test_references_that_everybody_sees_need_no_mask():
    q, k, v = (random(ROWS, PIXELS, WIDTH, seed=seed) for seed in range(3))
    keys, values = random(ROWS, 2, 6, WIDTH, seed=4), random(ROWS, 2, 6, WIDTH, seed=5)
    masks = []

    def watched(q, k, v, mask):
        masks.append(mask)
        return attention(q, k, v, mask)

    found = biased_reference_attention(watched, q, k, v, (keys, values), None, 0.0)
    everything = torch.ones(ROWS, PIXELS, 2, dtype=torch.bool)
    torch.testing.assert_close(found, biased_reference_attention(attention, q, k, v, (keys, values), everything, 0.0))
    assert masks == [None]


def test_a_router_sees_the_same_for_a_row_alone_and_beside_longer_casts():
    router = AnyStoryRouter(WIDTH, 128, torch.float64, "cpu", comfy.ops.manual_cast)
    for seed, weight in enumerate(router.parameters()):
        weight.data = random(*weight.shape, seed=seed) / math.sqrt(weight.shape[1])
    hidden, features = random(2, PIXELS, WIDTH, seed=50), random(2, 4, 128, seed=51)
    absent = torch.tensor([[False] * 4, [False, True, True, False]])
    features[1, 1:3] = 0
    found = router(hidden, router.probes(features, absent))
    for row, there in enumerate(~absent):
        alone = router(hidden[row : row + 1], router.probes(features[row, there]))
        for name in ("coarse", "refined"):
            maps = getattr(found, name)[row]
            torch.testing.assert_close(maps[:, there], getattr(alone, name)[0], rtol=1e-9, atol=1e-9)
            assert (maps[:, ~there] == -math.inf).all()


# ---------------------------------------------------------------- in the model


def rows_of(casts) -> RowSubjects:
    """The subjects of several casts, each the cast of one row."""
    counts = [len(cast.names) for cast in casts]
    places = torch.full((len(casts), max(counts)), sum(counts))
    first = 0
    for row, count in enumerate(counts):
        places[row, :count] = torch.arange(first, first + count)
        first += count
    hidden = tuple(
        torch.empty(0) if states[0] is None else torch.cat(states)
        for states in zip(*(cast.hidden for cast in casts), strict=True)
    )
    tokens = torch.cat([cast.tokens[:-1] for cast in casts] + [casts[0].tokens[-1:]])
    entries = torch.nn.functional.pad(places, (0, 1), value=sum(counts))
    return RowSubjects(tokens[entries], hidden, places)


def features_of(casts) -> tuple[torch.Tensor, torch.Tensor]:
    """R and which are absent, of the same rows."""
    longest = max(len(cast.names) for cast in casts)
    features, absent = [], []
    for cast in casts:
        missing = longest - len(cast.names)
        features.append(torch.cat((cast.router[:-1], torch.zeros(missing, cast.router.shape[1]), cast.router[-1:])))
        absent.append([False] * len(cast.names) + [True] * missing + [False])
    return torch.stack(features), torch.tensor(absent)


def prompt(seed: int, pooled: int):
    text = torch.randn(1, 7, 384, generator=torch.Generator().manual_seed(seed))
    return [[text, {"pooled_output": text[:, 0, :pooled]}]]


@pytest.fixture
def trainable(sdxl):
    with torch.inference_mode(False):
        return TrainableModel(sdxl, "frozen")


@pytest.mark.parametrize("eta, gamma", [(1.0, 0.0), (0.6, -0.5)])
def test_every_row_is_what_inference_predicts_for_its_cast(trainable, make_subjects, eta, gamma):
    """Of three casts, which share the background's features and the network."""
    casts = [make_subjects(count, seed=count) for count in (2, 1, 3)]
    for cast in casts:
        cast.router[-1], cast.tokens[-1] = casts[0].router[-1], casts[0].tokens[-1]
        cast.null_tokens[:] = cast.tokens[-1]
    network = casts[0].network.model
    features, absent = features_of(casts)
    generator = torch.Generator().manual_seed(0)
    x, sigma = 3 * torch.randn(3, 4, 16, 24, generator=generator), torch.tensor([3.0, 1.0, 3.0])
    prompts = [prompt(seed, 384) for seed in range(3)]
    routed = Routed(network.routers, features, absent)
    call = RowCall(network, rows_of(casts), routed, eta, gamma)
    together = trainable.predict(x, sigma, prompts, with_rows(trainable.patcher, call))
    plain = trainable.predict(x, sigma, prompts)
    for row, cast in enumerate(casts):
        patched, _ = apply_anystory(trainable.patcher, cast, Settings(eta, gamma))
        alone = trainable.predict(x[row : row + 1], sigma[row : row + 1], prompts[row : row + 1], patched)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
        assert (together[row] - plain[row]).abs().max() > 1e-2
    assert list(routed.logits) == [layer.name for layer in network.injection.layers]


def test_given_masks_are_what_the_routers_would_have_to_say(trainable, make_subjects):
    """The prediction with the owners that the routers find is that with these owners given."""
    cast = make_subjects(2)
    network = cast.network.model
    x, sigma, prompts = torch.randn(1, 4, 16, 16), torch.tensor([2.0]), [prompt(0, 384)]
    masks = torch.zeros(1, 2, 16, 16)
    masks[0, 0, :, :8], masks[0, 1, 8:, 8:] = 1, 1
    wanted = {}

    class Told:
        """Assigns as `GivenMasks` does, and notes to whom."""

        def __call__(self, layer, grid, hidden):
            found = GivenMasks(masks)(layer, grid, hidden)
            wanted[layer.name] = found.owners
            return found

    first = trainable.predict(
        x, sigma, prompts, with_rows(trainable.patcher, RowCall(network, rows_of([cast]), Told()))
    )
    again = RowCall(network, rows_of([cast]), GivenMasks(masks))
    assert torch.equal(trainable.predict(x, sigma, prompts, with_rows(trainable.patcher, again)), first)
    for owners, layer in zip(wanted.values(), network.injection.layers, strict=True):
        size = 16 // layer.factor
        grid = owners.view(size, size)
        assert (grid[:, : size // 2] == 0).all() and (grid[size // 2 :, size // 2 :] == 1).all()
        assert (grid[: size // 2, size // 2 :] == 2).all()


def test_a_row_without_references_sees_none(trainable, make_subjects):
    """Neither where everything is the subject's, nor where masks say what is; the rows beside it do."""
    casts = [make_subjects(1, seed=seed) for seed in range(2)]
    network = casts[0].network.model
    x, sigma, prompts = torch.randn(2, 4, 16, 16), torch.tensor([2.0, 2.0]), [prompt(0, 384)] * 2
    both = rows_of(casts)
    for assign in (everywhere, GivenMasks(torch.ones(2, 1, 4, 4))):
        tokens = both.tokens[:, :1] if assign is everywhere else both.tokens

        def predict(places, hidden, assign=assign, tokens=tokens):
            call = RowCall(network, RowSubjects(tokens, hidden, places), assign)
            return trainable.predict(x, sigma, prompts, with_rows(trainable.patcher, call))

        with_one = predict(torch.tensor([[0], [2]]), both.hidden)
        other = tuple(state + 1 for state in both.hidden)
        assert torch.equal(with_one[1], predict(torch.tensor([[0], [2]]), other)[1])
        assert not torch.equal(with_one[0], predict(torch.tensor([[0], [2]]), other)[0])


def test_nothing_of_it_is_left_in_the_model(trainable, make_subjects):
    cast = make_subjects(1)
    x, sigma, prompts = torch.randn(1, 4, 16, 16), torch.tensor([2.0]), [prompt(0, 384)]
    before = trainable.predict(x, sigma, prompts)
    call = RowCall(cast.network.model, rows_of([cast]), GivenMasks(torch.ones(1, 1, 4, 4)))
    trainable.predict(x, sigma, prompts, with_rows(trainable.patcher, call))
    assert torch.equal(trainable.predict(x, sigma, prompts), before)
    assert not trainable.patcher.wrappers.get(WrappersMP.DIFFUSION_MODEL)
