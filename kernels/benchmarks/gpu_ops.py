"""What is compared: FMA, and what a user would take instead.

All take query, key and value heads-last, ``[B, *grid, heads, head_dim]``,
and return the output likewise; each gets what it needs as views.
"""
from typing import Any, Callable, Dict, List, Tuple
from unittest import mock

import torch
from gpu_common import Call, Case
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, average_pyramid, fma1d, fma2d
from fma_kernels.backends import load
from fma_kernels.pooling import pack, packed_mass

Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(query: Tensor, key: Tensor, value: Tensor, **options):
    """``fma1d`` or ``fma2d``, by the number of axes, or flex_attention."""
    if options.get('backend') == 'flex':
        del options['backend']
        return flex(query, key, value, **options)
    return (fma1d if query.dim() == 4 else fma2d)(query, key, value, **options)


def flex(query: Tensor, key: Tensor, value: Tensor, **geometry) -> Tensor:
    """The same pattern through flex_attention, pooling included."""
    h = Hierarchy(tuple(query.shape[1:-2]), **geometry)
    if h.num_levels:
        pooled = [pack(average_pyramid(x, h), h.ndim) for x in (key, value)]
    else:
        pooled = [key.new_zeros((key.shape[0], 0, *key.shape[-2:]))] * 2
    return load('flex').flex(
        query,
        key,
        value,
        *pooled,
        packed_mass(h, device=query.device),
        None,
        h,
        True,
        query.shape[-1]**-0.5,
        return_lse=False)[0]


def fma_options(case: Case, cell: int, backend: str,
                **form: Any) -> Dict[str, Any]:
    causal = dict(causal=True) if case.causal else {}
    return dict(cell_size=cell, backend=backend, **causal, **form)


def fma_forms(case: Case, backend: str) -> Dict[str, Dict[str, Any]]:
    """What is timed of FMA itself, by name: options beside the cell."""
    forms = dict(fma=dict(backend=backend), flex=dict(backend='flex'))
    if not case.causal:
        forms['pooled'] = dict(backend=backend, pool_queries=True)
    return forms


def sdpa_choice(device: str, dtype: torch.dtype) -> str:
    """The kernel that ``sdpa`` is timed with, by its name in PyTorch."""
    # On a CPU PyTorch chooses; FlashAttention takes 16 bits only.
    if torch.device(device).type == 'cuda' and dtype.itemsize == 2:
        return SDPBackend.FLASH_ATTENTION.name
    return 'chosen by PyTorch'


def sdpa(case: Case) -> Op:
    """PyTorch's attention over all tokens, by ``sdpa_choice``'s kernel."""
    plain = _sdpa(case)

    def op(*tensors: Tensor) -> Tensor:
        name = sdpa_choice(tensors[0].device, tensors[0].dtype)
        if name not in SDPBackend.__members__:
            return plain(*tensors)
        with sdpa_kernel(SDPBackend.__members__[name]):
            return plain(*tensors)

    return op


def _sdpa(case: Case) -> Op:
    """Attention over all tokens, in and out heads-last."""

    def op(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads_first = (
            x.flatten(1, -3).transpose(1, 2) for x in (query, key, value))
        out = scaled_dot_product_attention(*heads_first, is_causal=case.causal)
        return out.transpose(1, 2).unflatten(1, case.shape)

    return op


def sdpa_cudnn(case: Case) -> Op:
    """The same through cuDNN, which PyTorch does not choose by itself."""
    plain = _sdpa(case)

    def op(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return plain(*tensors)

    return op


def flex_kernel(case: Case, cell: int,
                tensors: List[Tensor]) -> Tuple[Op, List[Tensor]]:
    """The compiled flex_attention of the flex backend, and nothing around it.

    Returns:
        The op, heads-first, and what the backend calls it with: query, key
        and value in its order, with the summaries behind the tokens.
    """
    module = load('flex')
    with mock.patch.object(
            module, '_attend', wraps=module._attend) as attend, \
            torch.no_grad():
        attention(*tensors, **fma_options(case, cell, 'flex'))
    ordered, others = attend.call_args.args[:3], attend.call_args.args[3:]
    return lambda *x: module._attend(*x, *others)[0], list(ordered)


def windows(case: Case, side: int = 8) -> Op:
    """Attention inside windows, as in Swin without shift and bias.

    The price of near tokens alone: nobody sees beyond a window.
    """
    rows, columns = (size // side for size in case.shape)
    split = (-1, rows, side, columns, side, case.heads, case.head_dim)

    def op(*tensors: Tensor) -> Tensor:
        parts = (
            # [B, rows, columns, heads, side, side, head_dim]
            x.view(split).permute(0, 1, 3, 5, 2, 4,
                                  6).reshape(-1, case.heads, side * side,
                                             case.head_dim) for x in tensors)
        out = scaled_dot_product_attention(*parts)
        out = out.view(-1, rows, columns, case.heads, side, side,
                       case.head_dim)
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(tensors[0].shape)

    return op


def natten(case: Case, cell: int) -> Op:
    """NATTEN with about the near field of a cell: a window of 3 cells."""
    import natten as package
    side = 3 * cell - 1  # odd, as all its versions allow
    if case.causal:
        return lambda *x: package.na1d(
            *x, kernel_size=2 * cell, is_causal=True)
    return lambda *x: package.na2d(*x, kernel_size=side)


def training(op: Op, tensors: List[Tensor], grad: Tensor) -> Call:
    """Forward and backward of fresh leaves."""
    leaves = [x.detach().requires_grad_() for x in tensors]

    def call() -> tuple:
        out = op(*leaves)
        return out, torch.autograd.grad(out, leaves, grad)

    return call


def inference(op: Op, tensors: List[Tensor]) -> Call:

    def call() -> Tensor:
        with torch.no_grad():
            return op(*tensors)

    return call
