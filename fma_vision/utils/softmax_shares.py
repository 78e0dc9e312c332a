"""How much of the softmax goes to near tokens and to each level."""

from collections import defaultdict
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

import torch
from torch import Tensor, nn

from fma_kernels import Hierarchy

from ..layers import attention

# Arguments of the op that move logits.
LOGITS = ('key_summaries', 'near_bias', 'far_bias')

Shares = Dict[str, Dict[str, List[float]]]


def _levels_of(query: Tensor, options: Dict[str, Any]) -> Hierarchy:
    """The cells of a call of :func:`fma_kernels.fma2d` or ``fma1d``."""
    found = Hierarchy(
        tuple(query.shape[1:-2]), options['cell_size'],
        options.get('num_levels'), options['rank'],
        options.get('causal', False))
    return found if options.get('num_levels') is not None else found.trimmed()


def softmax_shares(op: Callable[..., Tensor], query: Tensor, key: Tensor,
                   value: Tensor, options: Dict[str, Any]) -> List[float]:
    """Mean share of the softmax weights by distance.

    The op is called with values that only say where they come from, so any
    backend and any option gives its own weights.

    Args:
        op: :func:`fma_kernels.fma1d` or :func:`fma_kernels.fma2d`.
        query, key, value: ``[B, *grid, heads, head_dim]``.
        options: The keyword arguments of the call.

    Returns:
        list[float]: Of the near field, then of the levels from the finest;
        their sum is 1. Means over queries that see anything, and heads.

    Raises:
        ValueError: The hierarchy has as many levels as a head has channels.
    """
    tree, batch = _levels_of(query, options), query.shape[0]
    heads, dim = query.shape[-2:]
    if tree.num_levels >= dim:
        raise ValueError(f'head_dim must exceed the {tree.num_levels} levels, '
                         f'got {dim}')

    def mark(shape: Any, channel: int) -> Tensor:
        marked = value.new_zeros((*shape, heads, dim), dtype=torch.float32)
        marked[..., channel] = 1
        return marked

    options = dict(
        options,
        num_levels=tree.num_levels,
        value_summaries=[
            mark((batch, *grid, tree.num_parts), level)
            for level, grid in enumerate(tree.grids, 1)
        ])
    for name in ('key_summaries', 'query_summaries'):
        if options.get(name) is not None:
            options[name] = [x.float() for x in options[name]]
    options.pop('dropout_p', None)
    found = op(query.float(), key.float(), mark(query.shape[:-2], 0),
               **options)
    found = found[..., :tree.num_levels + 1].flatten(0, -2)
    seen = found.sum(-1) > .5
    return found[seen].mean(0).tolist()


@contextmanager
def record_shares(model: nn.Module) -> Iterator[Shares]:
    """Record the shares of every FMA layer of a model while it runs.

    Args:
        model: Any module with :class:`~fma_vision.layers.FMAttention2D` or
            ``FMAttention1D`` inside.

    Yields:
        dict[str, dict[str, list[float]]]: By the layer's name, means over
        the calls so far, see :func:`softmax_shares`: ``'learned'``, and
        ``'even'``, what equal logits would give: the share of the tokens,
        where summaries weigh by their mass.

    Raises:
        ValueError: The model has no such layer.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (attention.FMAttention1D,
                              attention.FMAttention2D))
    }
    if not layers:
        raise ValueError('the model has no FMAttention layer')
    calls: Dict[Tuple[str, str], List[List[float]]] = defaultdict(list)
    found: Shares = {name: {} for name in layers}
    running: List[str] = []

    def note(kind: str, shares: List[float]) -> None:
        """Add a call of the layer that runs to its means."""
        rows = calls[running[-1], kind]
        rows.append(shares)
        # Maps of other sizes may have other numbers of levels.
        found[running[-1]][kind] = [
            sum(column) / len(rows)
            for column in zip_longest(*rows, fillvalue=0.)
        ]

    def recorded(op: Callable[..., Tensor]) -> Callable[..., Tensor]:

        @torch.no_grad()
        def shares(query: Tensor, key: Tensor, value: Tensor,
                   options: Dict[str, Any]) -> None:
            note('learned', softmax_shares(op, query, key, value, options))
            plain = {k: v for k, v in options.items() if k not in LOGITS}
            # Keys of zeros: all logits are equal.
            note(
                'even',
                softmax_shares(op, query, torch.zeros_like(key), value, plain))

        def call(query: Tensor, key: Tensor, value: Tensor,
                 **options: Any) -> Tensor:
            shares(query, key, value, options)
            return op(query, key, value, **options)

        return call

    hooks = []
    for name, layer in layers.items():
        hooks.append(
            layer.register_forward_pre_hook(
                lambda *_, name=name: running.append(name)))
        hooks.append(
            layer.register_forward_hook(lambda *_: running.pop() and None))
    ops = {op: recorded(getattr(attention, op)) for op in ('fma1d', 'fma2d')}
    try:
        with mock.patch.multiple(attention, **ops):
            yield found
    finally:
        for hook in hooks:
            hook.remove()
