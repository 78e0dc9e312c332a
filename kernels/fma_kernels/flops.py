"""What the ops cost, told to PyTorch's ``FlopCounterMode``.

Two floating-point operations for each multiply-add, as PyTorch counts.
Attention is counted by the pairs of the definition, learned summaries by the
taps of their cells. As usual, averages, softmax and what merges levels are
not counted.
"""
from functools import partial
from typing import Any, Callable, Dict, List

import torch
from torch.utils.flop_counter import register_flop_formula

from . import ops, pooled, summaries  # noqa: F401  define what is counted
from .geometry import Hierarchy

# One multiply-add.
FLOPS_PER_MAC = 2


def summary_macs(form: str, hierarchy: Hierarchy, heads: int,
                 head_dim: int) -> int:
    """Multiply-adds of learned summaries of one sequence or image.

    Args:
        form: ``'grouped_conv'``, ``'conv'`` or ``'hierarchical'``.
        hierarchy: of the summaries.
        heads, head_dim: of the tokens.
    """
    if not hierarchy.num_levels:
        return 0
    # Each token has a weight in each summary of its cell.
    level = hierarchy.num_tokens * hierarchy.num_parts * heads * head_dim
    if form == 'grouped_conv':
        return level * hierarchy.num_levels
    if form == 'conv':
        return level * hierarchy.num_levels * head_dim
    children = sum(hierarchy.level_sizes[:-1])
    return level + children * heads * head_dim**2


def _attention(given: Dict[str, Any]) -> int:
    of_cells = 'query_summaries' in given
    # [B, *grid, heads, head_dim], or [B, summaries, heads, head_dim]
    asking = given['query_summaries' if of_cells else 'query']
    batch, *grid, heads, head_dim = asking
    hierarchy = Hierarchy(
        tuple(given['grid'] if of_cells else grid),
        given['cell_size'],
        num_levels=given.get('num_levels', 1),
        rank=given['rank'],
        causal=given.get('causal', False))
    pairs = hierarchy.visited_pairs
    if of_cells:
        pairs = hierarchy.pooled_pairs
    elif 'num_levels' not in given:
        pairs = hierarchy.near_pairs
    return 2 * FLOPS_PER_MAC * pairs * head_dim * heads * batch


def _summaries(given: Dict[str, Any]) -> int:
    batch, *grid, heads, head_dim = given['x']
    hierarchy = Hierarchy(
        tuple(grid), given['cell_size'], given['num_levels'], given['rank'])
    macs = summary_macs(given['form'], hierarchy, heads, head_dim)
    return FLOPS_PER_MAC * batch * macs


def register(name: str, count: Callable[[Dict[str, Any]], int],
             backward: float) -> None:
    """Tells PyTorch's counter what an op and its backward op cost.

    Args:
        name: of the forward op in ``torch.ops.fma_kernels``.
        count: from its arguments by their names, shapes instead of tensors.
        backward: cost of the backward op over that of the forward op.
    """
    for op, factor in ((name, 1), (f'{name}_backward', backward)):
        packet = getattr(torch.ops.fma_kernels, op)
        names = [x.name for x in packet.default._schema.arguments]
        register_flop_formula(packet)(partial(_scaled, count, factor, names))


def _scaled(count: Callable, factor: float, names: List[str], *args: Any,
            **_: Any) -> int:
    return int(factor * count(dict(zip(names, args))))


# Backward computes five products, forward two.
register('attention', _attention, 5 / 2)
register('far_field', _attention, 5 / 2)
register('near_field', _attention, 5 / 2)
# One product; backward one for tokens and one for weights.
register('summaries', _summaries, 2)
