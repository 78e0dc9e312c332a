"""Fast Multipole Attention with averages as summaries: nothing learned."""

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from fma_kernels import Hierarchy, fma1d
from fma_kernels.summaries import average_summaries
from fma_vision.layers import FMAttention1D
from fma_vision.layers.positions import rotate

from .method import BIDIRECTIONAL, CAUSAL, Call, Method, largest_difference
from .subjects import Subject

FAMILY = 'FMA'
# Cell and rank.
PLAIN = ((16, 1), (16, 4), (32, 1), (32, 4), (64, 1), (64, 4), (128, 4),
         (256, 4), (512, 4))
# With the spread of keys, too.
SPREAD = ((16, 1), (64, 1), (64, 4), (128, 4), (256, 4), (512, 4))
# Half a cell as rank has the structure of H-Transformer-1D as published.
LINEAR = ((16, 1), (16, 8), (64, 1), (64, 4), (256, 4))


def fma_call(subject: Subject,
             causal: bool,
             cell_size: int,
             rank: int,
             pool_queries: bool = False,
             turned: bool = False,
             spread: bool = False,
             backend: str = 'auto') -> Call:
    """The op as :class:`~fma_vision.layers.FMAttention1D` calls it.

    Args:
        subject: Query, key and value.
        causal: Attend to the left only.
        cell_size, rank, pool_queries, backend: As for ``fma1d``.
        turned: Pool keys as full attention sees them. By default those
            before the rotation are pooled, and turned to their centres.
        spread: Give summaries the second term of the cumulants, too,

                log mean exp(tau q.k) = tau q.k~ + (tau |q|)^2 var(k) / 2,

            with var(k) the variance of the keys of a sub-cell over all its
            channels, by one channel more; nothing is learned.
    """
    tree = Hierarchy((subject.length, ), cell_size, rank=rank,
                     causal=causal).trimmed()
    # For its centres of cells alone.
    layer = FMAttention1D(2, 1, cell_size, rank=rank)
    centres = layer.summary_positions(tree, subject.query.device)
    head_dim = subject.query.shape[-1]
    scale = head_dim**-.5
    turn = subject.unturned_key is not None and not turned
    asking, asked = subject.query, subject.key
    if turn:
        asking, asked = subject.unturned_query, subject.unturned_key

    def placed(packed: Tensor) -> Tensor:
        return rotate(packed, centres, subject.rotary_base) if turn else packed

    def weight(query: Tensor) -> Tensor:
        """What a query multiplies a variance by, before ``scale``."""
        return query.square().sum(-1, keepdim=True) * (scale / 2)

    def wider(x: Tensor, channel: Optional[Tensor] = None) -> Tensor:
        """One channel more, of zeros by default."""
        if channel is None:
            return nn.functional.pad(x, (0, 1))
        return torch.cat([x, channel], -1)

    def call() -> Tensor:
        query, key, value = subject.query, subject.key, subject.value
        options: Dict[str, Any] = {}
        if turn or spread:
            keys = average_summaries(asked, tree)
            options['key_summaries'] = placed(keys)
            if pool_queries:
                options['query_summaries'] = placed(
                    average_summaries(asking, tree))
        if spread:
            squares = average_summaries(asked.square().mean(-1, True), tree)
            variance = (squares - keys.square().mean(-1, True)).clamp(min=0)
            options['key_summaries'] = wider(options['key_summaries'],
                                             variance)
            if pool_queries:
                asks = options['query_summaries']
                options['query_summaries'] = wider(asks, weight(asks))
            query, key, value = (wider(query, weight(query)), wider(key),
                                 wider(value))
        out = fma1d(
            query,
            key,
            value,
            cell_size=cell_size,
            num_levels=tree.num_levels,
            rank=rank,
            causal=causal,
            scale=scale,
            pool_queries=pool_queries,
            backend=backend,
            **options)
        return out[..., :head_dim]

    return call


def _method(prefix: str = '', suffix: str = '', **options) -> Method:
    name = f'{prefix}cell {options["cell_size"]}, rank {options["rank"]}'
    pooled = options.get('pool_queries', False)
    return Method(
        FAMILY,
        name + suffix,
        lambda subject, causal, _: fma_call(subject, causal, **options),
        options,
        modes=(BIDIRECTIONAL, ) if pooled else (CAUSAL, BIDIRECTIONAL))


def methods(longest_cell: int) -> List[Method]:
    """All forms with cells up to a size."""
    plain = [_method(cell_size=m, rank=p) for m, p in PLAIN]
    turned = [
        _method(
            suffix=', turned keys pooled', cell_size=64, rank=4, turned=True)
    ]
    spread = [
        _method(suffix=', spread', cell_size=m, rank=p, spread=True)
        for m, p in SPREAD
    ]
    linear = [
        _method('linear, ', cell_size=m, rank=p, pool_queries=True)
        for m, p in LINEAR
    ]
    return [
        method for method in plain + turned + spread + linear
        if method.settings['cell_size'] <= longest_cell
    ]


def check(method: Method, head_dim: int) -> Dict[str, float]:
    """The op against its dense definition, on a short ragged piece.

    Args:
        method: One of :func:`methods`.
        head_dim: Of the piece; one head, as large cells need many tokens.

    Returns:
        Largest differences by mode.
    """
    cell = method.settings['cell_size']
    length = 6 * cell + cell // 2 + 1
    query, key, value = torch.randn(3, 1, length, 1, head_dim)
    at = torch.arange(length)
    subject = Subject(rotate(query, at), rotate(key, at), value, query, key)
    return {
        'causal' if causal else 'bidirectional':
        largest_difference(
            *(fma_call(subject, causal, backend=backend, **method.settings)()
              for backend in ('torch', 'naive')))
        for causal in method.modes
    }
