"""The facts that hold exactly, whatever the backend."""
import pytest
import torch
from compare import backends, missing, place
from torch.nn import functional as F

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_kernels.testing import assert_close, random_mask, random_qkv

BACKENDS = backends('naive', 'torch', 'native')
# Where few steps are needed: the kernels may be interpreted.
ALL_BACKENDS = backends('naive', 'torch', 'native', 'triton')
# shape, cell_size, num_levels, rank
GRIDS = [((29, ), 2, None, 1), ((40, ), 4, 1, 2), ((9, ), 2, 4, 2),
         ((13, 10), 2, None, 1), ((11, 18), 4, 1, 4), ((20, 9), 3, 2, 3),
         ((1, 14), 1, None, 1), ((22, 22), 4, None, 2)]
SMALL = [((9, ), 2, 4, 2), ((3, 9), 2, None, 1)]
grids = pytest.mark.parametrize(
    'backend, grid', [
        pytest.param(
            name,
            grid,
            marks=pytest.mark.skipif(
                missing(name) is not None, reason=str(missing(name))))
        for name in ('naive', 'torch', 'native', 'triton')
        for grid in (SMALL if name == 'triton' else GRIDS)
    ],
    ids=str)


def fma(q, k, v, *args, **kwargs):
    return (fma1d if q.dim() == 4 else fma2d)(q, k, v, *args, **kwargs)


def softmax_attention(q, k, v, key_mask=None, causal=False):
    """SDPA over all tokens in float64, ``[B, *grid, heads, head_dim]``."""
    flat = [x.double().flatten(1, -3).transpose(1, 2) for x in (q, k, v)]
    mask = None if key_mask is None else key_mask.flatten(1)[:, None, None]
    out = F.scaled_dot_product_attention(
        *flat, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).reshape(q.shape)


def full_lse(q, k, key_mask=None):
    flat = [x.double().flatten(1, -3) for x in (q, k)]
    logits = torch.einsum('bqhd,bkhd->bqhk', *flat) * q.shape[-1]**-0.5
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask.flatten(1)[:, None, None],
                                    -torch.inf)
    return logits.logsumexp(-1).view(q.shape[:-1])


@ALL_BACKENDS
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', [(17, ), (9, 6), (1, 1)], ids=str)
def test_no_levels_is_full_attention(shape, masked, backend) -> None:
    qkv = random_qkv(shape, batch=2, **place(backend))
    mask = random_mask(shape, 2).to(qkv[0].device) if masked else None
    if masked:
        mask.flatten(1)[:, 0] = True
    out, lse = fma(
        *qkv,
        cell_size=2,
        num_levels=0,
        key_mask=mask,
        backend=backend,
        return_lse=True)
    expected = softmax_attention(*qkv, mask)
    assert_close(out, expected)
    assert_close(lse, full_lse(*qkv[:2], mask))
    weights = torch.randn_like(out)
    for a, b in zip(
            torch.autograd.grad(out, qkv, weights),
            torch.autograd.grad(expected, qkv, weights)):
        assert_close(a, b, grad=True)


@ALL_BACKENDS
def test_no_levels_causal_is_causal_attention(backend) -> None:
    qkv = random_qkv((19, ), batch=2, **place(backend))
    out = fma1d(*qkv, cell_size=4, num_levels=0, causal=True, backend=backend)
    assert_close(out, softmax_attention(*qkv, causal=True))


@ALL_BACKENDS
def test_a_grid_of_two_cells_is_full_attention(backend) -> None:
    qkv = random_qkv((7, 8), **place(backend))
    out = fma2d(*qkv, cell_size=4, backend=backend)
    assert_close(out, softmax_attention(*qkv))


def constant_on(h: Hierarchy, x: torch.Tensor) -> torch.Tensor:
    """``x`` with one value for every sub-cell of the top level."""
    side = h.widths[-1] // h.rank
    for axis, size in enumerate(h.shape, 1):
        index = torch.arange(size, device=x.device)
        x = x.index_select(axis, index // side * side)
    return x


@pytest.mark.parametrize('masked', [False, True])
@grids
def test_constant_keys_give_full_attention(grid, masked, backend) -> None:
    shape, cell_size, levels, rank = grid
    h = Hierarchy(*grid)
    assert h.num_levels
    q, k, v = random_qkv(shape, batch=2, **place(backend))
    k = constant_on(h, k)
    mask = random_mask(shape, 2, real=0.6).to(q.device) if masked else None
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=mask,
        backend=backend,
        return_lse=True)
    out, lse = fma(q, k, v, **options)
    assert_close(out, softmax_attention(q, k, v, mask))
    assert_close(lse, full_lse(q, k, mask))
    # Without log(mass) a cell weighs as one token: not the same.
    other, _ = fma(q, k, v, mass=False, **options)
    if h.widths[-1] > rank:
        assert (other - out).abs().max() > 1e-2


@ALL_BACKENDS
def test_constant_keys_give_causal_attention(backend) -> None:
    h = Hierarchy((45, ), 4, None, 2, True)
    q, k, v = random_qkv(h.shape, **place(backend))
    k = constant_on(h, k)
    out = fma1d(q, k, v, cell_size=4, rank=2, causal=True, backend=backend)
    assert_close(out, softmax_attention(q, k, v, causal=True))


@BACKENDS
@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_permuting_batch_or_heads_commutes(grid, backend) -> None:
    shape, cell_size, levels, rank = grid
    qkv = random_qkv(shape, heads=3, batch=3, **place(backend))
    mask = random_mask(shape, 3)
    options = dict(
        cell_size=cell_size, num_levels=levels, rank=rank, backend=backend)
    out = fma(*qkv, key_mask=mask, **options)
    order = [2, 0, 1]
    assert_close(
        fma(*[x[order] for x in qkv], key_mask=mask[order], **options),
        out[order])
    assert_close(
        fma(*[x[..., order, :] for x in qkv], key_mask=mask, **options),
        out[..., order, :])


CAUSAL = pytest.mark.parametrize('cell_size, levels, rank', [(2, None, 1),
                                                             (2, None, 2),
                                                             (4, 1, 4),
                                                             (1, None, 1),
                                                             (3, 7, 1),
                                                             (4, 0, 1)])


@BACKENDS
@CAUSAL
def test_causal_output_ignores_later_tokens(cell_size, levels, rank,
                                            backend) -> None:
    q, k, v = random_qkv((37, ), **place(backend))
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        causal=True,
        backend=backend,
        return_lse=True)
    out, lse = fma1d(q, k, v, **options)
    for i in (0, 1, 7, 16, 30, 35):
        changed = [x.detach().clone() for x in (q, k, v)]
        for x in changed:
            x[:, i + 1:] = torch.randn_like(x[:, i + 1:]) * 1e30
        other, other_lse = fma1d(*changed, **options)
        assert_close(other[:, :i + 1], out[:, :i + 1])
        assert_close(other_lse[:, :i + 1], lse[:, :i + 1])
        # And no gradient reaches later tokens.
        grads = torch.autograd.grad(
            out[:, i].sum() + lse[:, i].sum(), (q, k, v), retain_graph=True)
        for grad in grads:
            assert (grad[:, i + 1:] == 0).all()
        assert (grads[2][:, :i + 1] != 0).all()  # and all earlier ones count


@BACKENDS
@CAUSAL
def test_causal_ignores_nan_of_later_masked_tokens(cell_size, levels, rank,
                                                   backend) -> None:
    # NaN is legal only where masked; it must not reach anyone.
    q, k, v = (x.detach() for x in random_qkv((37, ), **place(backend)))
    mask = torch.ones(1, 37, dtype=torch.bool)
    mask[:, 20:] = False
    dirty = [x.clone() for x in (k, v)]
    for x in dirty:
        x[:, 20:] = torch.nan
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        causal=True,
        backend=backend)
    out = fma1d(q, *dirty, key_mask=mask, **options)
    assert torch.isfinite(out).all()
    assert_close(out[:, :20], fma1d(q, k, v, **options)[:, :20])


@BACKENDS
@pytest.mark.parametrize('rank', [1, 2])
@pytest.mark.parametrize('levels', [None, 6])
def test_causal_prefixes_agree(levels, rank, backend) -> None:
    qkv = random_qkv((70, ), **place(backend))
    options = dict(
        cell_size=2,
        num_levels=levels,
        rank=rank,
        causal=True,
        backend=backend)
    whole = fma1d(*qkv, **options)
    for n in (1, 2, 4, 5, 9, 16, 17, 33, 50, 64, 69):
        assert_close(fma1d(*[x[:, :n] for x in qkv], **options), whole[:, :n])


@grids
def test_levels_beyond_need_change_nothing(grid, backend) -> None:
    shape, cell_size, _, rank = grid
    qkv = random_qkv(shape, **place(backend))
    auto = Hierarchy(shape, cell_size).num_levels
    options = dict(cell_size=cell_size, rank=rank, backend=backend)
    out = fma(*qkv, **options)
    for levels in (auto + 1, auto + 4):
        assert_close(fma(*qkv, num_levels=levels, **options), out)


@grids
def test_query_without_real_key_gives_zero(grid, backend) -> None:
    shape, cell_size, levels, rank = grid
    qkv = random_qkv(shape, batch=2, **place(backend))
    mask = random_mask(shape, 2).to(qkv[0].device)
    mask[0] = False
    options = dict(
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        key_mask=mask,
        backend=backend,
        return_lse=True)
    out, lse = fma(*qkv, **options)
    assert (out[0] == 0).all() and (lse[0] == -torch.inf).all()
    assert (out[1] != 0).all() and torch.isfinite(lse[1]).all()
    # Even a slope that is NaN, as log-sum-exps of nothing give, is stopped.
    slope = torch.ones_like(lse)
    slope[0] = torch.nan
    for grad in torch.autograd.grad((out, lse), qkv,
                                    (torch.randn_like(out), slope)):
        assert (grad[0] == 0).all()
        assert torch.isfinite(grad[1]).all() and (grad[1] != 0).any()


@ALL_BACKENDS
def test_causal_query_before_any_real_key(backend) -> None:
    qkv = random_qkv((20, ), **place(backend))
    mask = torch.ones(1, 20, dtype=torch.bool, device=qkv[0].device)
    mask[:, :11] = False
    out, lse = fma1d(
        *qkv,
        cell_size=2,
        causal=True,
        key_mask=mask,
        backend=backend,
        return_lse=True)
    assert (out[:, :11] == 0).all() and (lse[:, :11] == -torch.inf).all()
    assert torch.isfinite(lse[:, 11:]).all()
    grads = torch.autograd.grad(out.sum() + lse[:, 11:].sum(), qkv)
    for grad in grads:
        assert torch.isfinite(grad).all() and (grad[:, :11] == 0).all()


@grids
def test_outputs_are_averages_of_values(grid, backend) -> None:
    shape, cell_size, levels, rank = grid
    q, k, _ = random_qkv(shape, **place(backend))
    out = fma(
        q,
        k,
        torch.ones_like(q),
        cell_size=cell_size,
        num_levels=levels,
        rank=rank,
        backend=backend)
    assert_close(out, torch.ones_like(out))


@BACKENDS
def test_lse_counts_the_tokens(backend) -> None:
    # Zero keys: every logit is log(mass), so lse is log(number of tokens).
    q, k, v = random_qkv((13, 22), **place(backend))
    _, lse = fma2d(
        q,
        torch.zeros_like(k),
        v,
        cell_size=2,
        backend=backend,
        return_lse=True)
    assert_close(lse.exp(), torch.full_like(lse, 13 * 22))
