"""Attention maps and what is made of them, against float64 and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from perfusion_core import PerfusionError
from perfusion_core.attention_maps import (
    attention,
    inject_maps,
    layer_resolution,
    merge_heads,
    refine_with_self_attention,
    soft_mask,
    split_heads,
    threshold,
    weighted_sum,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_maps_are_softmax_of_scaled_products_in_float32(dtype: torch.dtype) -> None:
    q, k, bias = rand(2, 6, 8).to(dtype), rand(2, 5, 8, seed=1).to(dtype), rand(2, 1, 5, seed=2)
    bias[:, :, 3] = -torch.inf
    maps = attention(q, k, 2, bias)
    for b in range(2):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            logits = q[b, :, part].double() @ k[b, :, part].double().T / math.sqrt(4) + bias[b].double()
            assert maps.dtype == torch.float32 and torch.allclose(maps[b, h].double(), logits.softmax(1), atol=1e-6)
    assert (maps[..., 3] == 0).all()


def test_heads_are_parted_and_joined_as_the_layers_do() -> None:
    x = rand(2, 6, 8)
    parted = split_heads(x, 4)
    assert torch.equal(parted[1, 2, 3], x[1, 3, 4:6]) and torch.equal(merge_heads(parted), x)
    query, key, value = rand(2, 6, 8, seed=1), rand(2, 5, 8, seed=2), rand(2, 5, 8, seed=3)
    mine = merge_heads(attention(query, key, 4) @ split_heads(value, 4))
    theirs = torch.nn.functional.scaled_dot_product_attention(*(split_heads(t, 4) for t in (query, key, value)))
    assert torch.allclose(mine, merge_heads(theirs), atol=1e-6)


def test_blending_is_the_weighted_sum_of_maps_or_of_results() -> None:
    weights = rand(2, 3, 6).softmax(1)
    for shape in ((2, 6, 4), (2, 5, 6, 4)):
        parts = [rand(*shape, seed=s) for s in range(3)]
        for b in range(2):
            for p in range(6):
                wanted = sum(weights[b, s, p].double() * parts[s][b, ..., p, :].double() for s in range(3))
                assert torch.allclose(weighted_sum(parts, weights)[b, ..., p, :].double(), wanted, atol=1e-6)


def test_injection_takes_the_columns_that_it_is_told_and_no_others() -> None:
    maps, source = rand(4, 2, 6, 5), rand(2, 2, 6, 7, seed=1)
    columns = torch.tensor([[0, 6, -1, 2, 3], [0, 6, -1, 2, 3], [-1] * 5, [-1] * 5])
    result = inject_maps(maps, source, columns)
    assert torch.equal(result[2:], maps[2:]) and torch.equal(result[:2, :, :, 2], maps[:2, :, :, 2])
    assert torch.equal(result[:2][..., [0, 1, 3, 4]], source[..., [0, 6, 2, 3]])
    # Where the host repeats a prompt, its tokens share what they take, and the sum stays.
    twice = inject_maps(maps.repeat(1, 1, 1, 2) / 2, source, columns.repeat(1, 2))
    torch.testing.assert_close(twice.unflatten(3, (2, -1)).sum(3), result)


def test_layers_sizes_are_halvings_of_the_latents() -> None:
    assert [layer_resolution(n, 8, 8) for n in (64, 16, 4, 1)] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert [layer_resolution(n, 9, 6) for n in (54, 15, 6)] == [(9, 6), (5, 3), (3, 2)]
    with pytest.raises(
        PerfusionError, match=r"that of the latents \(8 × 8\), halved some number of times, but one layer has 50 pixels"
    ):
        layer_resolution(50, 8, 8)


def test_refinement_spreads_over_what_looks_at_itself_and_stops_at_its_edge() -> None:
    """Two things of four pixels each; the map lights up one pixel of the first."""
    affinity = torch.zeros(1, 8, 8)
    affinity[0, :4, :4] = affinity[0, 4:, 4:] = 0.25
    looked = torch.zeros(1, 8)
    looked[0, 2] = 1
    assert torch.equal(refine_with_self_attention(looked, affinity), torch.tensor([[1.0] * 4 + [0.0] * 4]))
    assert torch.equal(refine_with_self_attention(torch.ones(1, 8), affinity), torch.zeros(1, 8))


def test_the_threshold_is_the_best_of_all() -> None:
    """Against every possible cut, on two humps."""
    values = torch.cat([0.25 + 0.06 * rand(300), 0.7 + 0.08 * rand(100, seed=1)]).clamp(0, 1)

    def between(cut: float) -> float:
        low, high = values[values < cut].double(), values[values >= cut].double()
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)

    best = max(range(20, 90), key=lambda percent: between(percent / 100)) / 100
    assert between(threshold(values)) >= 0.995 * between(best)


def test_a_soft_mask_is_high_on_one_side_of_the_threshold_and_has_a_maximum_of_one() -> None:
    looked = torch.full((8, 8), 0.1)
    looked[2:6, 3:7] = 0.9
    mask = soft_mask(looked + 0.02 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    assert mask.max() == 1 and mask.min() == 0
    assert (mask[2:6, 3:7] > 0.95).all() and mask.sum() - mask[2:6, 3:7].sum() < 1
