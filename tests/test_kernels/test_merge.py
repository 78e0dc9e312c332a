"""Attention over a union of key sets from that over each."""
import pytest
import torch

from fma_kernels import merge


def attention(query, key, value):
    """``[n, heads, dim]`` over ``[k, heads, dim]``, with lse."""
    logits = torch.einsum('qhd,khd->qhk', query, key)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - lse[..., None])
    return torch.einsum('qhk,khd->qhd', weights, value), lse


@pytest.fixture
def qkv():
    return torch.randn(3, 11, 2, 4, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize('cuts', [(11, ), (4, 7), (1, 9, 1), (2, 3, 3, 3)])
def test_merged_parts_equal_the_whole(qkv, cuts) -> None:
    q, k, v = qkv
    parts = [attention(q, *kv) for kv in zip(k.split(cuts), v.split(cuts))]
    out, lse = merge(*zip(*parts))
    whole = attention(q, k, v)
    torch.testing.assert_close((out, lse), whole)
    weights = torch.randn_like(out), torch.randn_like(lse)
    torch.testing.assert_close(
        torch.autograd.grad((out, lse), qkv, weights, retain_graph=True),
        torch.autograd.grad(whole, qkv, weights))


def test_empty_sets_count_for_nothing(qkv) -> None:
    q, k, v = qkv
    out, lse = attention(q, k, v)
    nothing = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
    merged = merge([nothing[0], out], [nothing[1], lse])
    torch.testing.assert_close(merged, (out, lse))
    merged = merge([nothing[0]] * 2, [nothing[1]] * 2)
    torch.testing.assert_close(merged, nothing)


def test_gradients_stay_finite_where_all_sets_are_empty() -> None:
    out = torch.randn(2, 3, 1, 4, requires_grad=True)
    lse = torch.tensor([[0., -torch.inf, -torch.inf],
                        [1., 2., -torch.inf]])[..., None].requires_grad_()
    merged = merge(out.unbind(), lse.unbind())
    assert torch.isfinite(merged[0]).all()
    assert merged[1].isinf().flatten().tolist() == [False, False, True]
    grads = torch.autograd.grad(merged, (out, lse),
                                [torch.ones_like(x) for x in merged])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert (grads[0][:, 2] == 0).all() and (grads[1][:, 2] == 0).all()
    assert (grads[0][:, 0] != 0).all()


def test_large_logits_do_not_overflow() -> None:
    out, lse = merge(
        [torch.ones(1, 1, 1), torch.zeros(1, 1, 1)],
        [torch.tensor([[1e4]]), torch.tensor([[1e4]])])
    assert out.item() == pytest.approx(0.5)
    assert lse.item() == pytest.approx(1e4 + 0.6931, abs=1e-2)


def test_half_precision_outputs_keep_their_dtype() -> None:
    out = torch.randn(2, 5, 1, 4).bfloat16()
    merged, lse = merge(out.unbind(), [torch.zeros(5, 1)] * 2)
    assert merged.dtype == torch.bfloat16 and lse.dtype == torch.float32


@pytest.mark.parametrize('outputs, lses', [(0, 0), (2, 1), (1, 2)])
def test_errors(outputs, lses) -> None:
    with pytest.raises(ValueError, match='outputs and lses'):
        merge([torch.zeros(1, 1, 1)] * outputs, [torch.zeros(1, 1)] * lses)
