"""The public ops: checks, choice of backend, dtypes, empty batches."""
import pytest
import torch
from slow_reference import slow_fma
from torch.utils._python_dispatch import TorchDispatchMode

from fma_kernels import Hierarchy, checks, explain_backend, fma1d, fma2d
from fma_kernels.checks import Request, can_run
from fma_kernels.pooling import pack
from fma_kernels.testing import (assert_close, random_biases, random_mask,
                                 random_qkv, random_summaries)

SHAPE = (9, 10)
LEVELS = Hierarchy(SHAPE, 2)  # two levels


def arguments(**changes):
    q, k, v = (x.detach() for x in random_qkv(SHAPE))
    return {'query': q, 'key': k, 'value': v, 'cell_size': 2, **changes}


def zeros(*shape, **kwargs):
    return torch.zeros(*shape, dtype=torch.float64, **kwargs)


def levels(drop=0, extra=0, dtype=torch.float64):
    found = [x.detach().to(dtype) for x in random_summaries(LEVELS)]
    found = found[:len(found) - drop]
    return found + found[:1] * extra


# argument, bad value, error, another word of the message
BAD = [
    ('query', [1, 2], TypeError, 'list'),
    ('query', zeros(1, 9, 10, 4), ValueError, r'\(1, 9, 10, 4\)'),
    ('query', torch.zeros(1, 9, 10, 2, 4,
                          dtype=torch.int32), TypeError, 'int32'),
    ('query', zeros(1, 0, 10, 2, 4), ValueError, 'empty'),
    ('query', zeros(1, 9, 10, 2, 0), ValueError, 'empty'),
    ('key', None, TypeError, 'NoneType'),
    ('key', zeros(1, 9, 11, 2, 4), ValueError, r'\(1, 9, 11, 2, 4\)'),
    ('key', zeros(1, 9, 10, 2, 4).float(), TypeError, 'float32'),
    ('key', zeros(1, 9, 10, 2, 4, device='meta'), ValueError, 'meta'),
    ('value', zeros(2, 9, 10, 2, 4), ValueError, r'\(2, 9, 10, 2, 4\)'),
    ('value', zeros(1, 9, 10, 2, 5), ValueError, r'\(1, 9, 10, 2, 5\)'),
    ('value', zeros(1, 9, 10, 2, 4).half(), TypeError, 'float16'),
    ('cell_size', 0, ValueError, '0'),
    ('cell_size', 2.5, TypeError, '2.5'),
    ('num_levels', -1, ValueError, '-1'),
    ('num_levels', 'auto', TypeError, 'auto'),
    ('rank', 3, ValueError, 'cell_size=2'),
    ('rank', None, TypeError, 'None'),
    ('key_summaries', levels()[0], TypeError, 'Tensor'),
    ('key_summaries', levels(drop=1), ValueError, '1'),
    ('key_summaries', levels()[::-1], ValueError, 'level 1'),
    ('key_summaries', [None, None], TypeError, 'NoneType'),
    ('value_summaries', levels(extra=1), ValueError, '3'),
    ('key_summaries', zeros(1, 33, 2, 4), ValueError,
     r'\(1, 34, 2, 4\), got \(1, 33, 2, 4\)'),
    ('key_summaries', zeros(1, 34, 2, 4).long(), TypeError, 'int64'),
    ('value_summaries', zeros(1, 34, 2, 4, device='meta'), ValueError, 'meta'),
    ('value_summaries', zeros(1, 34, 8), TypeError,
     r'M_total, .* Tensor of shape \(1, 34, 8\)'),
    ('value_summaries', levels(dtype=torch.int64), TypeError, 'int64'),
    ('mass', 1, TypeError, '1'),
    ('return_lse', None, TypeError, 'None'),
    ('scale', '1', TypeError, "'1'"),
    ('scale', True, TypeError, 'True'),
    ('scale', float('nan'), ValueError, 'finite .* nan'),
    ('scale', -float('inf'), ValueError, 'finite .* -inf'),
    ('scale', 10**400, ValueError, 'finite in torch.float64'),
    ('key_mask', [True], TypeError, 'list'),
    ('key_mask', zeros(1, 9, 10), TypeError, 'float64'),
    ('key_mask', torch.ones(9, 10,
                            dtype=torch.bool), ValueError, r'\(9, 10\)'),
    ('near_bias', 3.0, TypeError, 'float'),
    ('near_bias', zeros(2, 48), ValueError, r'\(2, 49\)'),
    ('near_bias', zeros(2, 49).long(), TypeError, 'int64'),
    ('near_bias', zeros(2, 49, device='meta'), ValueError, 'meta'),
    ('far_bias', zeros(2, 1, 49), TypeError, 'Tensor'),
    ('far_bias', [zeros(2, 1, 49)], ValueError, '2 levels'),
    ('far_bias', [zeros(2, 1, 49), zeros(2, 1, 48)], ValueError, 'level 2'),
    ('dropout_p', 1.0, ValueError, '1.0'),
    ('dropout_p', -0.1, ValueError, '-0.1'),
    ('dropout_p', float('nan'), ValueError, 'nan'),
    ('dropout_p', '0', TypeError, "'0'"),
    ('dropout_seed', 1.5, TypeError, '1.5'),
    ('backend', 'cuda', ValueError, "'cuda'"),
    ('backend', ['torch'], ValueError, 'torch'),
]


@pytest.mark.parametrize(
    'name, value, error, word',
    BAD,
    ids=[f'{b[0]}-{i}' for i, b in enumerate(BAD)])
def test_errors_name_the_argument(name, value, error, word) -> None:
    with pytest.raises(error, match=word) as caught:
        fma2d(**arguments(**{name: value}))
    assert name in str(caught.value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_scale_is_finite_where_logits_are(dtype) -> None:
    x = torch.randn(1, 9, 1, 4, dtype=dtype)
    with pytest.raises(
            ValueError, match=r'scale .* torch.float32, got 1e\+300'):
        fma1d(x, x, x, cell_size=2, scale=1e300)
    x = x.double()
    assert fma1d(x, x, x, cell_size=2, scale=1e300).isfinite().all()


@pytest.mark.parametrize('backend', ['torch', 'naive'])
@pytest.mark.parametrize('pool_queries', [False, True])
@pytest.mark.parametrize('levels', [None, 1, 4])
def test_packed_summaries(levels, pool_queries, backend) -> None:
    """As a list of levels, those included that the grid does not need."""
    h = Hierarchy(SHAPE, 2, levels, rank=2)
    names = ['key_summaries', 'value_summaries']
    names += ['query_summaries'] * pool_queries
    given = [random_summaries(h, seed=seed) for seed, _ in enumerate(names)]
    packed = [pack(x, h.ndim).detach().requires_grad_() for x in given]
    options = dict(
        num_levels=levels,
        rank=2,
        key_mask=random_mask(SHAPE),
        pool_queries=pool_queries,
        return_lse=True,
        backend=backend)
    results = []
    for summaries in (given, packed):
        found = fma2d(**arguments(**dict(zip(names, summaries)), **options))
        leaves = sum(summaries, []) if summaries is given else packed
        slopes = [x.detach().cos() for x in found]
        results.append([*found, torch.autograd.grad(found, leaves, slopes)])
    (out, lse, grads), (packed_out, packed_lse, packed_grads) = results
    assert torch.equal(out, packed_out) and torch.equal(lse, packed_lse)
    for i, grad in enumerate(packed_grads):
        count = h.num_levels
        expected = pack(list(grads[i * count:(i + 1) * count]), h.ndim)
        assert_close(grad, expected)
        assert (grad != 0).any()


def test_packed_summaries_of_autocast() -> None:
    qkv = random_qkv(SHAPE, dtype=torch.float32)
    levels = random_summaries(LEVELS, dtype=torch.float32)
    results = []
    for given in (levels, pack(levels, 2)):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = fma2d(*qkv, cell_size=2, key_summaries=given)
        assert out.dtype == torch.bfloat16
        results.append(out)
    assert torch.equal(*results)


def test_errors_of_1d() -> None:
    q, k, v = random_qkv((9, ))
    with pytest.raises(ValueError, match=r'query must be \[B, N, heads'):
        fma1d(**arguments())
    with pytest.raises(TypeError, match='causal'):
        fma1d(q, k, v, cell_size=2, causal='yes')
    with pytest.raises(TypeError, match='causal'):
        fma2d(**arguments(causal=True))  # 2D has no such argument


def test_near_bias_does_not_cover_full_attention() -> None:
    with pytest.raises(ValueError, match='near_bias .*num_levels=0'):
        fma2d(**arguments(num_levels=0, near_bias=zeros(2, 49)))


def biases():
    near, far = random_biases(LEVELS)
    return dict(near_bias=near.detach(), far_bias=[x.detach() for x in far])


@pytest.mark.parametrize('name', ['near_bias', 'far_bias'])
def test_biases_are_refused_with_the_reason(name) -> None:
    bias = {name: biases()[name]}
    for backend, dtype in (('native', torch.float32), ('torch',
                                                       torch.float64)):
        reason = (f"backend='{backend}' cannot run: it has no {name} for "
                  'pool_queries')
        given = arguments(backend=backend, pool_queries=True, **bias)
        for x in ('query', 'key', 'value'):
            given[x] = given[x].to(dtype)
        with pytest.raises(ValueError, match=reason):
            fma2d(**given)
    query = arguments()['query']
    asked = Request.of(query, **bias, pool_queries=True)
    with pytest.raises(ValueError, match=reason):
        can_run('torch', asked, raise_error=True)
    assert can_run('naive', asked)
    assert can_run('torch', Request.of(query, **bias))
    assert can_run('torch', Request.of(query, pool_queries=True))


@pytest.mark.parametrize('backend', ['auto', 'torch', 'naive'])
@pytest.mark.parametrize(
    'names', [('near_bias', ), ('far_bias', ), ('near_bias', 'far_bias')],
    ids=str)
def test_biases_work_where_they_can(names, backend) -> None:
    given = {name: biases()[name] for name in names}
    args = arguments(**given)
    out, lse = fma2d(backend=backend, return_lse=True, **args)
    expected = slow_fma(args['query'], args['key'], args['value'], LEVELS,
                        **given)
    assert_close(out, expected[0])
    assert_close(lse, expected[1])


def test_biases_learn() -> None:
    given = biases()
    tables = [given['near_bias'], *given['far_bias']]
    for table in tables:
        table.requires_grad_()
    out = fma2d(**arguments(**given))
    grads = torch.autograd.grad(out.square().sum(), tables)
    # Level 2 of so small a grid is the top: it is used as well.
    assert all((grad != 0).any() for grad in grads)


def test_explain_backend() -> None:
    query = arguments()['query']
    lines = explain_backend(query).splitlines()
    assert lines == [
        'triton: it needs a CUDA device, not cpu',
        "native: it has no float64; backend='torch' has", 'torch: chosen'
    ]
    lines = explain_backend(query, **biases()).splitlines()
    assert len(lines) == 3 and lines[-1] == 'torch: chosen'
    lines = explain_backend(query, pool_queries=True, **biases()).splitlines()
    assert len(lines) == 4 and lines[-1] == 'naive: chosen'
    assert lines[2].startswith('torch: it has no near_bias for pool_queries')
    assert 'far_bias' in explain_backend(
        query, pool_queries=True, far_bias=biases()['far_bias'])


def request(device='cpu', dtype=torch.float32, **asked) -> Request:
    return Request(torch.device(device), dtype, 4, **asked)


def test_what_native_cannot_run(monkeypatch) -> None:
    monkeypatch.setattr(checks, 'unavailable', lambda: None)
    assert can_run('native', request())
    assert can_run('native', request(near_bias=True, far_bias=True))
    assert can_run('native', request(dtype=torch.bfloat16, pool_queries=True))
    lines = explain_backend(torch.zeros(1, 9, 1, 4)).splitlines()
    assert lines == [
        'triton: it needs a CUDA device, not cpu', 'native: chosen'
    ]
    for asked, word in ((dict(device='cuda:0'), 'needs a CPU, not cuda:0'),
                        (dict(dtype=torch.float64), 'has no float64'),
                        (dict(far_bias=True, pool_queries=True),
                         'no far_bias for pool_queries')):
        with pytest.raises(ValueError, match=f'native.* cannot run: .*{word}'):
            can_run('native', request(**asked), raise_error=True)
    monkeypatch.setattr(checks, 'unavailable', lambda: 'no C compiler')
    lines = explain_backend(torch.zeros(1, 9, 1, 4)).splitlines()
    assert lines[1:] == ['native: no C compiler', 'torch: chosen']


def test_onnx_export_takes_operators_of_pytorch(monkeypatch) -> None:
    """No custom op, which no exporter knows."""
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    names = []

    class Spy(TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    for pool_queries in (False, True):
        given = arguments(pool_queries=pool_queries)
        with Spy():
            out = fma2d(**given)
        assert_close(out, fma2d(backend='naive', **given))
    assert names and not any('fma_kernels' in name for name in names)
    query = torch.zeros(1, 9, 1, 4)
    assert explain_backend(query).splitlines()[1:] == [
        "native: ONNX export takes PyTorch's operators: backend='torch'",
        'torch: chosen'
    ]


def test_auto_is_the_blocked_backend(monkeypatch) -> None:
    out = fma2d(**arguments())
    assert torch.equal(out, fma2d(**arguments(backend='torch')))
    monkeypatch.setattr('fma_kernels.functional.naive', None)
    assert torch.equal(out, fma2d(**arguments()))


@pytest.mark.parametrize('backend', ['torch', 'naive'])
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_return_lse_and_dtypes(dtype, backend) -> None:
    qkv = random_qkv(SHAPE, dtype=dtype)
    out, lse = fma2d(*qkv, cell_size=2, backend=backend, return_lse=True)
    assert out.dtype == dtype and out.shape == qkv[0].shape
    assert lse.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32)
    assert lse.shape == qkv[0].shape[:-1]
    assert torch.equal(fma2d(*qkv, cell_size=2, backend=backend), out)
    for x, grad in zip(
            qkv, torch.autograd.grad(out.sum() + lse.sum().to(dtype), qkv)):
        assert grad.dtype == dtype and torch.isfinite(grad).all()


@pytest.mark.parametrize('backend', ['torch', 'naive'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype, backend) -> None:
    qkv = random_qkv(SHAPE, dtype=torch.float32)
    given = dict(key_summaries=random_summaries(LEVELS, dtype=torch.float32))
    exact, exact_lse = fma2d(*qkv, cell_size=2, return_lse=True, **given)
    with torch.autocast('cpu', dtype=dtype):
        out, lse = fma2d(
            *qkv, cell_size=2, backend=backend, return_lse=True, **given)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert not torch.equal(out.float(), exact)
    assert_close(out, exact, dtype)
    assert_close(lse, exact_lse, dtype)
    grads = torch.autograd.grad(out.float().sum(), qkv)
    for a, b in zip(grads, torch.autograd.grad(exact.sum(), qkv)):
        assert a.dtype == torch.float32  # of the master copies
        assert_close(a, b, dtype, grad=True)


def test_autocast_leaves_float64_alone() -> None:
    args = arguments()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(fma2d(**args), fma2d(**arguments()))
        assert fma2d(**args).dtype == torch.float64


@pytest.mark.parametrize('backend', ['auto', 'torch', 'naive'])
@pytest.mark.parametrize('shape', [(17, ), (9, 10)], ids=str)
def test_empty_batch(shape, backend) -> None:
    qkv = random_qkv(shape, batch=0)
    op = fma1d if len(shape) == 1 else fma2d
    for mask in (None, random_mask(shape, 0)):
        out, lse = op(
            *qkv,
            cell_size=2,
            key_mask=mask,
            dropout_p=0.1,
            backend=backend,
            return_lse=True)
        assert out.shape == qkv[0].shape and lse.shape == out.shape[:-1]
        for grad in torch.autograd.grad((out, lse), qkv,
                                        (out.detach(), lse.detach())):
            assert grad.shape == out.shape


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('backend', ['torch', 'naive'])
def test_masked_queries_may_hold_anything(bad, backend) -> None:
    q, k, v = random_qkv(SHAPE)
    mask = random_mask(SHAPE)
    options = dict(cell_size=2, key_mask=mask, backend=backend)
    zero = q.detach().masked_fill(~mask[..., None, None], 0)
    dirty = q.detach().masked_fill(~mask[..., None, None], bad)
    expected = fma2d(zero, k, v, **options)
    slope = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, (k, v), slope)
    dirty.requires_grad_()
    out = fma2d(dirty, k, v, **options)
    # What is not a number asks as 0 does: it hurts no one.
    assert torch.equal(out, expected)
    query_grad, *others = torch.autograd.grad(out, (dirty, k, v), slope)
    assert all(torch.equal(a, b) for a, b in zip(others, grads))
    assert (query_grad[~mask] == 0).all()


def test_inputs_are_left_alone() -> None:
    args = arguments(key_mask=random_mask(SHAPE), key_summaries=levels())
    before = [
        x.clone() for x in (args['query'], args['key'], args['value'],
                            *args['key_summaries'])
    ]
    args['query'].requires_grad_()
    fma2d(**args).sum().backward()
    after = (args['query'], args['key'], args['value'], *args['key_summaries'])
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize('shape, cell_size, num_levels', [((7, 7), 64, 2),
                                                          ((1, 1), 512, 1),
                                                          ((20, ), 10**9, 3),
                                                          ((13, 9), 4, 5)])
def test_levels_beyond_need_cost_nothing(shape, cell_size, num_levels) -> None:
    """They are legal, equal to no such level, and not padded for."""
    op = fma1d if len(shape) == 1 else fma2d
    qkv = random_qkv(shape, heads=2, head_dim=4, dtype=torch.float64)
    out = op(*qkv, cell_size=cell_size, num_levels=num_levels)
    assert_close(out, op(*qkv, cell_size=cell_size))


def test_given_summaries_beyond_need_get_zero_gradients() -> None:
    tree = Hierarchy((13, 9), 4, num_levels=4)
    qkv = random_qkv((13, 9), heads=2, head_dim=4, dtype=torch.float64)
    levels = [
        x.requires_grad_() for x in random_summaries(
            tree, heads=2, head_dim=4, dtype=torch.float64)
    ]
    out = fma2d(*qkv, cell_size=4, num_levels=4, key_summaries=levels)
    grads = torch.autograd.grad(out.sum(), levels)
    assert all(grad.abs().max() == 0 for grad in grads[2:])
    assert grads[0].abs().max() > 0
