"""Layers with pooled queries, the linear variant."""

import os
import shutil

import pytest
import torch

from fma_kernels import Hierarchy, fma2d, naive, pooling
from fma_vision.engine.complexity import measure_complexity
from fma_vision.layers import FMAttention1D, FMAttention2D, rotate

LEARNED = ['grouped_conv', 'conv', dict(type='hierarchical', shared=True)]
# What asks, and the summaries it needs.
FORMS = [(True, 'avg'), (True, 'grouped_conv'),
         *[('learned', form) for form in LEARNED]]
forms = pytest.mark.parametrize('pool_queries, summaries', FORMS, ids=str)


def _layer(layer, *args, std=.3, **kwargs):
    layer = layer(16, 2, *args, **kwargs).double()
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=std)
    return layer


def _expected(layer, x, key_mask=None):
    """By the dense oracle, with every summary given."""
    grid, names = x.shape[1:-1], ('query', 'key', 'value')
    tree = Hierarchy(grid, layer.cell_size, layer.num_levels, layer.rank)
    qkv = layer.qkv(x).unflatten(-1, (3, 2, 8)).unbind(-3)
    given = {}
    for name, y in zip(names, qkv):
        form = getattr(layer, f'{name}_summaries')
        given[f'{name}_summaries'] = pooling.unpack(
            form(y, tree, key_mask), tree)
    out, _ = naive(
        *qkv,
        tree,
        mass=layer.mass,
        key_mask=key_mask,
        pool_queries=True,
        **given)
    return layer.proj(out.flatten(-2))


@forms
@pytest.mark.parametrize('layer, grid', [(FMAttention1D, (45, )),
                                         (FMAttention2D, (9, 14)),
                                         (FMAttention2D, (3, 2))])
@pytest.mark.parametrize('masked', [False, True])
def test_layer_equals_definition(layer, grid, pool_queries, summaries, masked):
    layer = _layer(
        layer,
        cell_size=2,
        rank=2,
        summaries=summaries,
        pool_queries=pool_queries)
    x = torch.randn(2, *grid, 16).double()
    mask = torch.rand(2, *grid) < .6 if masked else None
    clean = x
    if masked:
        clean = x.masked_fill(~mask[..., None], 0)
        x = x.masked_fill(~mask[..., None], float('nan'))
    out, expected = layer(x, mask), _expected(layer, clean, mask)
    torch.testing.assert_close(out, expected)
    if max(grid) > 4:
        layer.pool_queries = False
        assert not torch.allclose(layer(x, mask), expected)


@pytest.mark.parametrize('summaries', LEARNED, ids=str)
def test_learned_queries_start_as_the_mean(summaries):
    options = dict(cell_size=2, rank=2, summaries=summaries)
    learned = FMAttention2D(16, 2, pool_queries='learned', **options).double()
    mean = FMAttention2D(16, 2, pool_queries=True, **options).double()
    mean.load_state_dict(learned.state_dict(), strict=False)
    x, mask = torch.randn(2, 11, 9, 16).double(), torch.rand(2, 11, 9) < .6
    torch.testing.assert_close(learned(x, mask), mean(x, mask))


@pytest.mark.parametrize('grid', [(3, 3), (19, 18)])
@pytest.mark.parametrize('summaries', LEARNED, ids=str)
def test_every_parameter_gets_a_gradient(summaries, grid):
    """Also on a grid that needs no level: DDP finds none unused."""
    layer = _layer(
        FMAttention2D,
        cell_size=2,
        summaries=summaries,
        pool_queries='learned')
    layer(torch.randn(1, *grid, 16).double()).square().sum().backward()
    for name, param in layer.named_parameters():
        assert param.grad is not None, name
    if grid == (19, 18):
        grads = [p.grad for p in layer.query_summaries.parameters()]
        assert (grads[0] != 0).any()


def test_only_learned_queries_have_parameters():
    names = {
        option:
        set(
            FMAttention2D(16, 2, summaries='conv',
                          pool_queries=option).state_dict())
        for option in (False, True, 'learned')
    }
    assert names[False] == names[True] < names['learned']
    more = names['learned'] - names[True]
    assert all(name.startswith('query_summaries.delta') for name in more)


# -------------------------------------------------------------------- rotary
def _slow(layer, x, key_mask, offset):
    """Every query apart, from the footprint that the geometry gives it."""
    images, length = x.shape[:2]
    real = torch.ones(x.shape[:2]).bool() if key_mask is None else key_mask
    x = x.masked_fill(~real[..., None], 0)
    query, key, value = layer.qkv(x).view(images, length, 3, 2, 8).unbind(2)
    tree = Hierarchy((length, ), layer.cell_size, rank=layer.rank)
    asked, keys, values = (pooling.unpack(form(y, tree, key_mask), tree)
                           for form, y in ((layer.query_summaries,
                                            query), (layer.key_summaries, key),
                                           (layer.value_summaries, value)))

    def turn(x, place):
        place = torch.tensor([place + offset]).double()
        return rotate(x[None], place, layer.rotary_base)[0]

    rows = torch.zeros(images, length, 2, 8).to(x)
    for image in range(images):
        for i in range(length):
            logits, seen = [], []
            found = tree.footprint(i)
            for j, in found.near:
                if real[image, j]:
                    q, k = turn(query[image, i], i), turn(key[image, j], j)
                    logits.append((q * k).sum(-1) * 8**-.5)
                    seen.append(value[image, j])
            for part in found.far:
                (start, ), (stop, ) = part.start, part.stop
                mass = real[image, start:stop].sum().item()
                if not mass:
                    continue
                level, side = part.level - 1, tree.widths[part.level -
                                                          1] // layer.rank
                own = divmod(i // side, layer.rank)
                place = (image, *part.cell, part.part)
                middle = (side - 1) / 2
                centre = i // side * side + middle
                q = turn(asked[level][(image, *own)], centre)
                k = turn(keys[level][place], start + middle)
                logits.append((q * k).sum(-1) * 8**-.5 +
                              torch.tensor(mass).to(x).log())
                seen.append(values[level][place])
            if logits:
                weights = torch.stack(logits).softmax(0)[..., None]
                rows[image, i] = (weights * torch.stack(seen)).sum(0)
    return layer.proj(rows.flatten(2))


@pytest.mark.parametrize('pool_queries, summaries',
                         [(True, 'avg'), ('learned', 'hierarchical')])
@pytest.mark.parametrize('masked', [False, True])
def test_rotary_queries_turn_to_their_centres(pool_queries, summaries, masked):
    layer = _layer(
        FMAttention1D,
        cell_size=2,
        rank=2,
        summaries=summaries,
        positions='rotary',
        rotary_base=50.,
        pool_queries=pool_queries)
    x = torch.randn(2, 25, 16).double()
    mask = torch.rand(2, 25) < .6 if masked else None
    real = mask if masked else torch.ones(2, 25).bool()
    torch.testing.assert_close(
        layer(x, mask, offset=3)[real],
        _slow(layer, x, mask, 3)[real])


@forms
def test_shift_of_the_whole_sequence_changes_nothing(pool_queries, summaries):
    layer = _layer(
        FMAttention1D,
        cell_size=4,
        summaries=summaries,
        positions='rotary',
        pool_queries=pool_queries)
    x = torch.randn(1, 61, 16).double()
    for offset in (1, 1000):
        torch.testing.assert_close(
            layer(x, offset=offset), layer(x), rtol=1e-6, atol=1e-8)


# ----------------------------------------------------------- options, counts
@pytest.mark.parametrize('kwargs, message', [
    (dict(pool_queries='mean'), "pool_queries must be .* got 'mean'"),
    (dict(pool_queries=1), 'pool_queries must be .* got 1'),
    (dict(pool_queries=None), 'pool_queries must be .* got None'),
    (dict(pool_queries='learned'), "'learned' needs .* summaries='avg'"),
    (dict(pool_queries=True, causal=True), 'pool_queries .* causal=True'),
    (dict(pool_queries='learned', summaries='conv', causal=True),
     "pool_queries .* 'learned': a pooled query mixes later tokens"),
])
def test_layer_refuses(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FMAttention1D(16, 2, **kwargs)


def test_dropout_acts_in_training_only():
    layer = _layer(FMAttention2D, cell_size=2, pool_queries=True, attn_drop=.5)
    x = torch.randn(1, 9, 9, 16).double()
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)


def test_macs_count_sub_cells():
    layer = FMAttention2D(16, 2, cell_size=2, rank=2, pool_queries=True)
    tree = Hierarchy((11, 14), 2, rank=2)
    macs = 2 * 16 * (tree.near_pairs + tree.pooled_pairs)
    assert layer.attention_macs(11, 14) == macs
    assert measure_complexity(layer, torch.randn(1, 11, 14,
                                                 16)).attention_macs == macs
    plain = FMAttention2D(16, 2, cell_size=4)
    pooled = FMAttention2D(16, 2, cell_size=4, pool_queries=True)
    assert pooled.attention_macs(64, 64) < plain.attention_macs(64, 64)


def test_backward_counts_two_and_a_half_times():
    from torch.utils.flop_counter import FlopCounterMode
    x = torch.randn(1, 11, 14, 2, 8, requires_grad=True)
    counters = [FlopCounterMode(display=False) for _ in range(2)]
    with counters[0]:
        out = fma2d(x, x, x, cell_size=2, pool_queries=True)
    with counters[1]:
        out.sum().backward()
    counts = [counter.get_total_flops() for counter in counters]
    assert counts[0] == Hierarchy((11, 14), 2).flops(2, 8, pool_queries=True)
    assert 2 * counts[1] == 5 * counts[0]


def test_the_option_is_shown():
    assert "pool_queries='learned'" in repr(
        FMAttention2D(16, 2, summaries='conv', pool_queries='learned'))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get('CXX', 'g++')) is None,
    reason='torch.compile on a CPU needs a C++ compiler')
def test_compiled_layer_has_no_graph_break():
    layer = FMAttention2D(
        16, 2, cell_size=2, summaries='grouped_conv', pool_queries='learned')
    x = torch.randn(1, 11, 14, 16)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- models
def test_a_backbone_takes_it_from_its_config():
    pytest.importorskip('mmengine')
    from fma_vision.models import FMATransformer
    attn = dict(
        type='FMAttention2D',
        cell_size=2,
        summaries='grouped_conv',
        pool_queries='learned')
    model = FMATransformer('nano', attn=attn)
    assert any('query_summaries.delta' in name
               for name in model.no_weight_decay())
    assert model(torch.randn(1, 3, 70, 50))[-1].shape[0] == 1


def test_a_masked_language_model_takes_it_a_causal_one_not():
    pytest.importorskip('mmengine')
    from fma_vision.models import FMALanguageModel
    options = dict(
        embed_dims=16,
        depth=1,
        num_heads=2,
        cell_size=4,
        rank=2,
        attn=dict(pool_queries='learned'))
    model = FMALanguageModel(11, causal=False, **options)
    assert torch.isfinite(model(torch.randint(0, 11, (1, 70)))[0]).all()
    with pytest.raises(ValueError, match='pool_queries'):
        FMALanguageModel(11, causal=True, **options)
