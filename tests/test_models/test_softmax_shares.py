"""Shares of the softmax by distance, against the definition."""

import pytest
import torch
from torch import nn

from fma_kernels.naive import visibility
from fma_kernels.pooling import average_pyramid, masses, pack
from fma_vision.layers import FMAttention1D, FMAttention2D
from fma_vision.visualization.softmax_shares import record_shares


def dense_shares(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same from a dense softmax over tokens and averages."""
    tree = layer.hierarchy(*x.shape[1:-1])
    qkv = layer.qkv(x).unflatten(-1, (3, layer.num_heads, layer.head_dim))
    query, key, _ = qkv.unbind(-3)
    averages = pack(average_pyramid(key, tree, None), tree.ndim)
    keys = torch.cat([key.flatten(1, tree.ndim), averages], dim=1)
    logits = torch.einsum('bqhd,bkhd->bhqk', query.flatten(1, tree.ndim),
                          keys) * layer.head_dim**-.5
    sizes = [tree.num_tokens, *tree.level_sizes]
    mass = torch.cat(
        [torch.ones(tree.num_tokens)] +
        [m.flatten().float() for m in masses(tree, None, x.device)])
    logits = logits + mass.log()
    hidden = ~visibility(tree)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.stack(
        [part.sum(-1).mean() for part in weights.split(sizes, dim=-1)])


@pytest.mark.parametrize('backend', ['auto', 'naive'])
def test_shares_of_a_layer(backend: str) -> None:
    layer = FMAttention2D(32, 2, cell_size=2, backend=backend).eval()
    nn.init.normal_(layer.qkv.weight, std=.5)
    model = nn.Sequential(layer)
    x = torch.randn(2, 17, 12, 32)
    before = layer(x)
    with record_shares(model) as found, torch.no_grad():
        # Recording changes nothing.
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    wanted = dense_shares(layer, x)
    assert len(wanted) >= 3  # near and two levels
    torch.testing.assert_close(
        torch.tensor(found['0']['learned']), wanted, rtol=1e-4, atol=1e-5)
    nn.init.zeros_(layer.qkv.weight)
    torch.testing.assert_close(
        torch.tensor(found['0']['even']),
        dense_shares(layer, x),
        rtol=1e-4,
        atol=1e-5)
    # Over: the op is the plain one again.
    before = dict(found['0'])
    layer(x)
    assert found['0'] == before


def test_causal_sequence_and_mean_over_calls() -> None:
    layer = FMAttention1D(
        32,
        2,
        cell_size=4,
        causal=True,
        positions='rotary',
        summaries='hierarchical').eval()
    with record_shares(layer) as found, torch.no_grad():
        # The layer itself is the model, and its output stays one.
        assert layer(torch.randn(1, 64, 32)).shape == (1, 64, 32)
        layer(torch.randn(1, 16, 32))
    (shares, ) = found.values()
    for values in shares.values():
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert min(values) >= 0 and values[1] > 0


def test_masked_tokens_neither_ask_nor_answer() -> None:
    layer = FMAttention2D(32, 2, cell_size=2).eval()
    x = torch.randn(1, 12, 12, 32)
    mask = torch.ones(1, 12, 12, dtype=torch.bool)
    mask[:, :, 6:] = False
    with record_shares(layer) as found, torch.no_grad():
        layer(x, key_mask=~mask & mask)  # nobody there: not a call to count
        assert not found
        layer(x, key_mask=mask)
        layer(x.masked_fill(~mask[..., None], torch.nan), key_mask=mask)
    # Seen from the left half alone: cells, cut at its borders.
    alone = FMAttention2D(32, 2, cell_size=2).eval()
    alone.load_state_dict(layer.state_dict())
    with record_shares(alone) as wanted, torch.no_grad():
        alone(x[:, :, :6])
    for kind in ('learned', 'even'):
        assert found[''][kind][0] == pytest.approx(
            wanted[''][kind][0], abs=1e-5)
        assert sum(found[''][kind]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    'options', [
        dict(pool_queries=True),
        dict(positions='rotary', summaries='conv'),
        dict(positions='relative', num_levels=5),
        dict(mass=False, rank=2)
    ],
    ids=str)
def test_forms(options: dict) -> None:
    """Every form, in bfloat16 as well: shares of one whole."""
    layer = FMAttention2D(32, 2, cell_size=2, **options).eval()
    levels = layer.hierarchy(17, 14).num_levels
    with record_shares(layer) as found, torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16):
            layer(torch.randn(1, 17, 14, 32))
    for values in found[''].values():
        assert len(values) == levels + 1
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert min(values) > 0


def test_nothing_to_record() -> None:
    with pytest.raises(ValueError, match='no FMAttention layer'):
        with record_shares(nn.Linear(2, 2)):
            pass
