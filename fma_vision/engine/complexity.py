"""Parameters and multiply-adds of a model, with attention counted.

PyTorch's counter sees nothing inside fused attention on a CPU, and fvcore's
nothing inside any fused attention: here it gets formulas from its shapes.
Those of Fast Multipole Attention, from the pairs that its hierarchy visits,
come with the ops (``fma_kernels.flops``).
"""

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fma_kernels.flops import FLOPS_PER_MAC


@dataclass(frozen=True)
class Complexity:
    """What one forward pass costs.

    Attributes:
        parameters: Number of learned values.
        macs: Multiply-adds of matrix products, convolutions and attention.
        attention_macs: The part of ``macs`` in fused attention: query-key
            and weight-value products and learned summaries, without
            projections.
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


def attention_formulas() -> Dict[Any, Callable[..., int]]:
    """Formulas of dense attention for :class:`FlopCounterMode`.

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
    return {
        op: formula
        for op, formula in formulas.items() if op not in flop_registry
    }


def _is_attention(op: Any) -> bool:
    return 'attention' in str(op) or str(op).startswith('fma_kernels')


def fvcore_handles() -> Dict[str, Callable[[list, list], int]]:
    """Formulas of attention for fvcore, which counts multiply-adds.

    Returns:
        Arguments of ``FlopCountAnalysis(...).set_op_handle(**handles)``.
    """
    formulas = {
        str(op).replace('.', '::'): formula
        for op, formula in flop_registry.items()
        if str(op).startswith('fma_kernels.')
    }
    formulas['aten::scaled_dot_product_attention'] = _biased_attention

    def handle(formula: Callable[..., int]) -> Callable[[list, list], int]:
        return lambda inputs, _: formula(*map(_traced, inputs)
                                         ) // FLOPS_PER_MAC

    return {name: handle(formula) for name, formula in formulas.items()}


def _traced(value: Any) -> Any:
    """What a value of a trace says: the shape of a tensor, or a constant."""
    if value.isCompleteTensor():
        return value.type().sizes()
    if value.node().kind() == 'prim::ListConstruct':
        return [_traced(x) for x in value.node().inputs()]
    return value.toIValue()


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
