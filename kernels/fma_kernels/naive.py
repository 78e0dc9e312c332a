"""The dense oracle: FMA as one masked softmax over [tokens | summaries].

Written from the definition, with no list or table of the fast backends:
visibility is a boolean matrix, obtained from cell coordinates. O(n ** 2)
memory; meant for tests, small inputs and for the arguments that no fast
backend takes.
"""
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from .dropout import keep_mask
from .geometry import Hierarchy
from .pooling import accumulation_dtype, average_pyramid, masses, pack


def _coordinates(shape: Tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major coordinates of a grid, ``[prod(shape), d]``."""
    axes = [torch.arange(size, device=device) for size in shape]
    return torch.cartesian_prod(*axes).reshape(-1, len(shape))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Chebyshev distances, ``[A, d]`` x ``[B, d]`` -> ``[A, B]``."""
    return (a[:, None] - b[None]).abs().amax(-1)


def visibility(hierarchy: Hierarchy,
               device: Optional[torch.device] = None) -> Tensor:
    """Who attends to what: bool ``[N, N + M_total]``.

    The columns are the tokens in row-major order, then the summaries in
    packed order. Masses are not considered here.
    """
    tokens = _coordinates(hierarchy.shape, device)
    count = hierarchy.num_tokens
    if hierarchy.num_levels == 0:
        near = torch.ones((count, count), dtype=torch.bool, device=device)
    else:
        leaf = tokens // hierarchy.cell_size
        near = _distance(leaf, leaf) <= 1
    if hierarchy.causal:
        near = near & (tokens >= tokens.T)
    columns = [near]
    for level, (width,
                grid) in enumerate(zip(hierarchy.widths, hierarchy.grids), 1):
        here = tokens // width
        cells = _coordinates(grid, device)
        seen = _distance(here, cells) > 1
        if level < hierarchy.num_levels:
            seen &= _distance(here // 2, cells // 2) <= 1
        if hierarchy.causal:
            seen &= cells.T < here
        columns.append(seen.repeat_interleave(hierarchy.num_parts, dim=1))
    return torch.cat(columns, dim=1)


def _own_summaries(hierarchy: Hierarchy, device: torch.device) -> Tensor:
    """The packed sub-cell of each level that a token lies in, ``[L, N]``."""
    tokens, rank = _coordinates(hierarchy.shape, device), hierarchy.rank
    found = []
    for start, width, grid in zip(hierarchy.level_starts, hierarchy.widths,
                                  hierarchy.grids):
        point = tokens // (width // rank)  # on the lattice of sub-cells
        cell = _row_major(point // rank, grid)
        part = _row_major(point % rank, (rank, ) * hierarchy.ndim)
        found.append(start + cell * hierarchy.num_parts + part)
    return torch.stack(found) if found else tokens.new_zeros((0, len(tokens)))


def _row_major(points: Tensor, grid: Tuple[int, ...]) -> Tensor:
    """Number of coordinates ``[..., d]`` on a grid."""
    number = torch.zeros_like(points[..., 0])
    for axis, size in enumerate(grid):
        number = number * size + points[..., axis]
    return number


def _askers(hierarchy: Hierarchy, pool_queries: bool,
            device: torch.device) -> Tensor:
    """Which token decides about dropout, ``[N, N + M_total or 1]``.

    A pooled query decides as the first token of its sub-cell would.
    """
    tokens = _coordinates(hierarchy.shape, device)
    own = _row_major(tokens, hierarchy.shape)[:, None]
    if not pool_queries:
        return own
    columns = [own.expand(-1, hierarchy.num_tokens)]
    for width, size in zip(hierarchy.widths, hierarchy.level_sizes):
        side = width // hierarchy.rank
        first = _row_major(tokens // side * side, hierarchy.shape)
        columns.append(first[:, None].expand(-1, size))
    return torch.cat(columns, dim=1)


def _bias(hierarchy: Hierarchy, near_bias: Optional[Tensor],
          far_bias: Optional[List[Tensor]], heads: int,
          device: torch.device) -> Tensor:
    """Relative-position logits, ``[heads, N, N + M_total]``."""
    tokens = _coordinates(hierarchy.shape, device)
    n, d = tokens.shape

    def table_index(offsets: Tensor, reach: int) -> Tensor:
        """Row-major index of clamped offsets ``[..., d]``."""
        return _row_major(
            offsets.clamp(-reach, reach) + reach, (2 * reach + 1, ) * d)

    def zeros(size: int) -> Tensor:
        return torch.zeros((heads, n, size), device=device)

    columns = [zeros(n)]
    if near_bias is not None:
        index = table_index(tokens[None] - tokens[:, None],
                            2 * hierarchy.cell_size - 1)
        columns = [near_bias[:, index]]
    for level, grid in enumerate(hierarchy.grids):
        if far_bias is None:
            columns.append(zeros(hierarchy.level_sizes[level]))
            continue
        here = tokens // hierarchy.widths[level]
        index = table_index(
            _coordinates(grid, device)[None] - here[:, None], 3)
        # [heads, parts, N, cells] -> [heads, N, cells * parts]
        table = far_bias[level][:, :, index].permute(0, 2, 3, 1)
        columns.append(table.flatten(2))
    return torch.cat(columns, dim=2)


def naive(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hierarchy: Hierarchy,
        key_summaries: Optional[List[Tensor]] = None,
        value_summaries: Optional[List[Tensor]] = None,
        mass: bool = True,
        scale: Optional[float] = None,
        key_mask: Optional[Tensor] = None,
        near_bias: Optional[Tensor] = None,
        far_bias: Optional[List[Tensor]] = None,
        dropout_p: float = 0.0,
        dropout_seed: int = 0,
        pool_queries: bool = False,
        query_summaries: Optional[List[Tensor]] = None
) -> Tuple[Tensor, Tensor]:
    """FMA by its definition, differentiable by autograd alone.

    Args and shapes are those of :func:`fma_kernels.fma2d`; float64 inputs
    are computed in float64, all others in float32.

    Returns:
        Output ``[B, *grid, heads, head_dim]`` in the input dtype and lse
        ``[B, *grid, heads]`` in the accumulation dtype.
    """
    dtype, acc = query.dtype, accumulation_dtype(query.dtype)
    batch, *grid, heads, dim = query.shape
    count, device = hierarchy.num_tokens, query.device
    if key_mask is not None:
        real = key_mask[..., None, None]
        key, value = key.masked_fill(~real, 0), value.masked_fill(~real, 0)
    if key_summaries is None:
        key_summaries = average_pyramid(key.to(acc), hierarchy, key_mask)
    if value_summaries is None:
        value_summaries = average_pyramid(value.to(acc), hierarchy, key_mask)

    tokens = torch.ones((1, count), dtype=torch.int64, device=device)
    if key_mask is not None:
        tokens = key_mask.flatten(1).to(torch.int64)
    weight = torch.cat(
        [tokens] + [
            level.flatten(1).expand(tokens.shape[0], -1)
            for level in masses(hierarchy, key_mask, device)
        ],
        dim=1)
    absent = weight == 0  # [B or 1, N + M_total]

    def with_summaries(x: Tensor, levels: List[Tensor]) -> Tensor:
        x = x.to(acc).flatten(1, hierarchy.ndim)
        if levels:
            x = torch.cat([x, pack(levels, hierarchy.ndim).to(acc)], dim=1)
        # What is absent may hold anything, even NaN.
        return x.masked_fill(absent[..., None, None], 0)

    q = query.to(acc).flatten(1, hierarchy.ndim)  # [B, N, heads, dim]
    k = with_summaries(key, key_summaries)  # [B, N + M_total, heads, dim]
    v = with_summaries(value, value_summaries)
    scale = dim**-0.5 if scale is None else scale
    if pool_queries:
        if query_summaries is None:
            query_summaries = average_pyramid(
                query.to(acc), hierarchy, key_mask)
        asked = with_summaries(query, query_summaries)
        logits = [torch.einsum('bqhd,bkhd->bhqk', q, k[:, :count])]
        # At each level, a token asks through its own sub-cell.
        for own, keys in zip(
                _own_summaries(hierarchy, device),
                k[:, count:].split(hierarchy.level_sizes, dim=1)):
            logits.append(
                torch.einsum('bqhd,bkhd->bhqk', asked[:, count + own], keys))
        logits = scale * torch.cat(logits, dim=-1)
    else:
        logits = scale * torch.einsum('bqhd,bkhd->bhqk', q, k)
    if mass:
        logits = logits + weight.clamp(min=1).to(acc).log()[:, None, None]
    if near_bias is not None or far_bias is not None:
        logits = logits + _bias(hierarchy, near_bias, far_bias, heads,
                                device).to(acc)
    hidden = ~visibility(hierarchy, device) | absent[:, None]
    # A bias may forbid all that a query sees: then it has no key, either.
    hidden = hidden[:, None] | (logits == -torch.inf)
    logits = logits.masked_fill(hidden, -torch.inf)

    lse = torch.logsumexp(logits, dim=-1)  # [B, heads, N]
    # A finite pivot: a query without any key gets zeros, not NaN.
    pivot = lse.masked_fill(lse == -torch.inf, 0)
    weights = torch.exp(logits - pivot[..., None])
    if dropout_p > 0:
        first = torch.arange(batch * heads, device=device) * count
        row = first[:, None, None] + _askers(hierarchy, pool_queries, device)
        column = torch.arange(weight.shape[1], device=device)
        keep = keep_mask(dropout_seed, dropout_p, row, column)
        weights = weights * keep.view_as(weights) / (1 - dropout_p)
    out = torch.einsum('bhqk,bkhd->bqhd', weights, v)
    return (out.to(dtype).reshape(batch, *grid, heads, dim),
            lse.transpose(1, 2).reshape(batch, *grid, heads))
