"""Fast Multipole Attention with averages as summaries: nothing learned."""

from typing import Dict, List

import torch
from torch import Tensor

from fma_kernels import Hierarchy, average_pyramid, fma1d
from fma_vision.layers import FMAttention1D
from fma_vision.layers.positions import rotate

from .method import BIDIRECTIONAL, CAUSAL, Call, Method, largest_difference
from .subjects import Subject

FAMILY = 'FMA'
# Cell and rank.
PLAIN = ((16, 1), (16, 4), (32, 1), (32, 4), (64, 1), (64, 4), (128, 4),
         (256, 4), (256, 16), (512, 16))
# Half a cell as rank has the structure of H-Transformer-1D as published.
LINEAR = ((16, 1), (16, 8), (64, 1), (64, 4), (64, 32), (256, 16))


def fma_call(subject: Subject,
             causal: bool,
             cell_size: int,
             rank: int,
             pool_queries: bool = False,
             turned: bool = False,
             backend: str = 'auto') -> Call:
    """The op as :class:`~fma_vision.layers.FMAttention1D` calls it.

    Args:
        subject: Query, key and value.
        causal: Attend to the left only.
        cell_size, rank, pool_queries, backend: As for ``fma1d``.
        turned: Pool keys as full attention sees them. By default those
            before the rotation are pooled, and turned to their centres.
    """
    tree = Hierarchy((subject.length, ), cell_size, rank=rank,
                     causal=causal).trimmed()
    # For its centres of cells alone.
    layer = FMAttention1D(2, 1, cell_size, rank=rank)
    centres = [
        layer.summary_positions(tree, level, subject.query.device)
        for level in range(1, tree.num_levels + 1)
    ]

    def summaries(x: Tensor) -> List[Tensor]:
        return [
            rotate(level, at, subject.rotary_base)
            for level, at in zip(average_pyramid(x, tree), centres)
        ]

    def call() -> Tensor:
        options = {}
        if subject.unturned_key is not None and not turned:
            options['key_summaries'] = summaries(subject.unturned_key)
            if pool_queries:
                options['query_summaries'] = summaries(subject.unturned_query)
        return fma1d(
            subject.query,
            subject.key,
            subject.value,
            cell_size=cell_size,
            num_levels=tree.num_levels,
            rank=rank,
            causal=causal,
            pool_queries=pool_queries,
            backend=backend,
            **options)

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
    linear = [
        _method('linear, ', cell_size=m, rank=p, pool_queries=True)
        for m, p in LINEAR
    ]
    return [
        method for method in plain + turned + linear
        if method.settings['cell_size'] <= longest_cell
    ]


def check(method: Method, heads: int, head_dim: int) -> Dict[str, float]:
    """The op against its dense definition, on a short ragged piece.

    Args:
        method: One of :func:`methods`.
        heads, head_dim: Of the piece.

    Returns:
        Largest differences by mode.
    """
    cell = method.settings['cell_size']
    length = 9 * cell + cell // 2 + 1
    query, key, value = torch.randn(3, 1, length, heads, head_dim)
    at = torch.arange(length)
    subject = Subject(rotate(query, at), rotate(key, at), value, query, key)
    return {
        'causal' if causal else 'bidirectional':
        largest_difference(
            *(fma_call(subject, causal, backend=backend, **method.settings)()
              for backend in ('torch', 'naive')))
        for causal in method.modes
    }
