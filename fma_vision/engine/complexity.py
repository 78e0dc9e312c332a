"""Parameters and multiply-adds of a model, with attention counted.

PyTorch's counter sees nothing inside a custom op, nor inside fused attention
on a CPU. Here both get formulas: dense attention from its shapes, Fast
Multipole Attention from the pairs that its hierarchy visits.
"""

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fma_kernels import Hierarchy

# One multiply-add is two operations.
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Complexity:
    """What one forward pass costs.

    Attributes:
        parameters: Number of learned values.
        macs: Multiply-adds of matrix products, convolutions and attention.
        attention_macs: The part of ``macs`` in fused attention: query-key
            and weight-value products, without projections.
    """
    parameters: int
    macs: int
    attention_macs: int


def _dense_attention(query: Sequence[int],
                     key: Sequence[int],
                     value: Sequence[int],
                     dropout_p: float = 0.,
                     is_causal: bool = False,
                     *_: Any,
                     **__: Any) -> int:
    """Operations of dense attention, from shapes ``[..., N, head_dim]``."""
    pairs = query[-2] * key[-2]
    if is_causal:  # as the multipole form: what is hidden does not count
        pairs = query[-2] * (query[-2] + 1) // 2
    flops = FLOPS_PER_MAC * pairs * (query[-1] + value[-1])
    for size in query[:-2]:
        flops *= size
    return flops


def _biased_attention(query: Sequence[int],
                      key: Sequence[int],
                      value: Sequence[int],
                      attn_bias: Any = None,
                      *rest: Any,
                      **options: Any) -> int:
    """As :func:`_dense_attention`, for an op with one argument more."""
    return _dense_attention(query, key, value, *rest, **options)


def _multipole_attention(packet: Any) -> Callable[..., int]:
    """A formula for one of the package's ops, by its arguments' names."""
    names = [argument.name for argument in packet.default._schema.arguments]

    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = {**dict(zip(names, args)), **kwargs}
        pooled = 'query_summaries' in given
        # [B, *grid, heads, head_dim], or [B, summaries, heads, head_dim]
        asking = given['query_summaries' if pooled else 'query']
        batch, *grid, heads, head_dim = asking.shape
        hierarchy = Hierarchy(
            tuple(given['grid'] if pooled else grid),
            given['cell_size'],
            num_levels=given.get('num_levels', 1),
            rank=given['rank'],
            causal=given.get('causal', False))
        pairs = hierarchy.visited_pairs
        if pooled:
            pairs = hierarchy.pooled_pairs
        elif 'num_levels' not in given:
            pairs = hierarchy.near_pairs
        forward = 2 * FLOPS_PER_MAC * pairs * head_dim * heads * batch
        # Backward computes five products, the forward pass two.
        return forward * 5 // 2 if 'grad_out' in names else forward

    flops._get_raw = True  # tells the counter to pass values, not shapes
    return flops


def attention_formulas() -> Dict[Any, Callable[..., int]]:
    """Formulas of the attention ops for :class:`FlopCounterMode`.

    Returns:
        A mapping for its argument ``custom_mapping``. Ops that already have
        a formula in torch keep it.
    """
    formulas: Dict[Any, Callable[..., int]] = {}
    for name, formula in (('_scaled_dot_product_flash_attention_for_cpu',
                           _dense_attention),
                          ('_scaled_dot_product_fused_attention_overrideable',
                           _biased_attention)):
        if hasattr(torch.ops.aten, name):
            formulas[getattr(torch.ops.aten, name)] = formula
    for name in torch.ops.fma_kernels:
        packet = getattr(torch.ops.fma_kernels, name)
        arguments = {a.name for a in packet.default._schema.arguments}
        asking = arguments & {'query', 'query_summaries'}
        if asking and 'cell_size' in arguments:
            formulas[packet] = _multipole_attention(packet)
    return {
        op: formula
        for op, formula in formulas.items() if op not in flop_registry
    }


def _is_attention(op: Any) -> bool:
    name = str(op)
    return 'attention' in name or name.startswith('fma_kernels')


def count_parameters(*modules: nn.Module) -> int:
    """Number of learned values, shared ones once."""
    seen = {
        id(parameter): parameter.numel()
        for module in modules
        for parameter in module.parameters()
    }
    return sum(seen.values())


def attention_layer_macs(layer: nn.Module, *grid: int) -> Optional[int]:
    """Multiply-adds of an attention layer on one image or text, by formula.

    Args:
        layer: One of :mod:`fma_vision.layers`, or with their conventions:
            ``attention_macs(*grid)`` counts all but the linear layers named
            ``qkv`` and ``proj``.
        *grid: Tokens along each axis.

    Returns:
        What :func:`measure_complexity` counts, without running anything;
        None for a layer without the formula.
    """
    if not hasattr(layer, 'attention_macs'):
        return None
    weights = sum(
        module.weight.numel() for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.split('.')[-1] in ('qkv',
                                                                     'proj'))
    return layer.attention_macs(*grid) + weights * math.prod(grid)


def measure_complexity(module: nn.Module, *inputs: Tensor,
                       **options: Any) -> Complexity:
    """Runs a module once in evaluation mode and counts what it does.

    Norms, activations, interpolation and pooling are not counted, as is
    usual for published numbers.

    Args:
        module: The module; its mode is restored afterwards.
        *inputs: Its inputs.
        **options: Further arguments of its ``forward``.

    Returns:
        The parameters of ``module`` and the multiply-adds of the call.
    """
    counter = FlopCounterMode(
        display=False, custom_mapping=attention_formulas())
    modes = [(child, child.training) for child in module.modules()]
    # The encoder layer's fast path is one opaque op.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        module.eval()
        with torch.no_grad(), counter:
            module(*inputs, **options)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for child, mode in modes:
            child.training = mode
    counts = counter.get_flop_counts().get('Global', {})
    attention = sum(n for op, n in counts.items() if _is_attention(op))
    return Complexity(
        parameters=count_parameters(module),
        macs=sum(counts.values()) // FLOPS_PER_MAC,
        attention_macs=attention // FLOPS_PER_MAC)
