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
    return Hierarchy(
        tuple(query.shape[1:-2]), options['cell_size'],
        options.get('num_levels'), options['rank'],
        options.get('causal', False)).trimmed()


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
        their sum is 1. Means over heads and over the real tokens that see
        anything; empty if there are none.

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
            options[name] = options[name].float()  # packed
    options.pop('dropout_p', None)
    with torch.autocast(query.device.type, enabled=False):
        found = op(query.float(), key.float(), mark(query.shape[:-2], 0),
                   **options)
    found = found[..., :tree.num_levels + 1]
    seen = found.sum(-1) > .5
    if options.get('key_mask') is not None:
        seen = seen & options['key_mask'][..., None]
    return found[seen].mean(0).tolist() if seen.any() else []


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
        where summaries weigh by their mass. Layers that did not run are
        left out; text written token by token is not recorded.

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
    found: Shares = {}
    running: List[str] = []

    def note(kind: str, shares: List[float]) -> None:
        """Add a call of the layer that runs to its means."""
        if not shares:
            return
        rows = calls[running[-1], kind]
        rows.append(shares)
        # Maps of other sizes may have other numbers of levels.
        found.setdefault(running[-1], {})[kind] = [
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

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    hooks = [
        hook for name, layer in layers.items()
        for hook in (layer.register_forward_pre_hook(enter(name)),
                     layer.register_forward_hook(leave))
    ]
    ops = {op: recorded(getattr(attention, op)) for op in ('fma1d', 'fma2d')}
    try:
        with mock.patch.multiple(attention, **ops):
            yield found
    finally:
        for hook in hooks:
            hook.remove()
