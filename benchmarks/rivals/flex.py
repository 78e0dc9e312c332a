"""FMA through PyTorch's ``flex_attention``: a rival and a second opinion.

The keys are [tokens | summaries], each part in Z-order of its cells (the
identity in 1D), so that a block of 128 x 128 holds what lies together. A
pair is visible if the query's coordinates lie inside the key's *window* and
outside its *hole*: two boxes of tokens. This shares no table with the
backends, and kernels and gradients are PyTorch's own. Needs torch 2.9.
"""
from functools import lru_cache, reduce
from math import log
from operator import and_
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as pytorch

from fma_kernels import Hierarchy
from fma_kernels.pooling import (accumulation_dtype, average_pyramid, pack,
                                 packed_mass)

# Side of a block of the mask: what flex_attention takes by default.
BLOCK = 128
# The compiler keeps one kernel per geometry. It raises beyond this number,
# 8 by default.
_MAX_KERNELS = 64


class Layout(NamedTuple):
    """Where queries and keys go, int64, and who sees whom."""
    queries: Tensor  # [rows]: row-major tokens; padding repeats one
    places: Tensor  # [N]: the inverse
    keys: Tensor  # [columns]: tokens, then packed summaries; padding is hidden
    block_mask: pytorch.BlockMask


# ------------------------------------------------------------------ the order
def _points(grid: Tuple[int, ...]) -> Tensor:
    """Row-major coordinates, int64 ``[prod(grid), d]``."""
    axes = torch.meshgrid([torch.arange(size) for size in grid], indexing='ij')
    return torch.stack(axes, dim=-1).view(-1, len(grid))


def _z_order(cells: Tensor) -> Tensor:
    """Interleaves the bits of coordinates ``[..., d]``."""
    d = cells.shape[-1]
    code = torch.zeros_like(cells[..., 0])
    for bit in range(int(cells.max()).bit_length()):
        for axis in range(d):
            code |= (cells[..., axis] >> bit & 1) << bit * d + d - 1 - axis
    return code


def _around(cells: Tensor, width: int) -> Tensor:
    """Tokens at distance at most 1 cell, ``[2, ..., d]``: from, to."""
    return torch.stack([cells - 1, cells + 2]) * width


def _part(hierarchy: Hierarchy, level: int) -> Tuple[Tensor, Tensor]:
    """The keys of a level, or for level 0 the tokens.

    The row-major key in each column, ``[size]``; and ``[4, size, d]``: window
    from, to, hole from, to.
    """
    grids, widths = hierarchy.grids, hierarchy.widths
    points = _points(grids[level - 1] if level else hierarchy.shape)
    cells = points if level else points // hierarchy.cell_size
    order = _z_order(cells).argsort(stable=True)
    points, cells = points[order], cells[order]
    if level:
        hole = _around(cells, widths[level - 1])
        window = _around(cells // 2, 2 * widths[level - 1])
    else:
        window = _around(cells, hierarchy.cell_size)
        hole = torch.zeros_like(window)
    if level == hierarchy.num_levels:  # the top level, or full attention
        window[0], window[1] = 0, max(hierarchy.shape)
    if hierarchy.causal and level:  # from the right end of the hole on
        window[0], hole = hole[1], torch.zeros_like(hole)
    elif hierarchy.causal:
        window[0] = points
    boxes = torch.cat([window, hole])
    if level:  # the same for every sub-cell
        parts = hierarchy.num_parts
        boxes = boxes.repeat_interleave(parts, dim=1)
        order = (order[:, None] * parts + torch.arange(parts)).flatten()
    return order, boxes


@lru_cache(maxsize=16)
def layout(hierarchy: Hierarchy, device: torch.device) -> Layout:
    """Order and block mask of a hierarchy on a device (cached).

    Takes memory for every pair of a leaf cell and a key.
    """
    count, total = (hierarchy.num_tokens,
                    hierarchy.num_tokens + hierarchy.num_summaries)
    # Both parts are padded to whole blocks.
    rows = -(-count // BLOCK) * BLOCK
    columns = rows - (count - total) // BLOCK * BLOCK
    with device:
        orders, boxes = zip(*(_part(hierarchy, level)
                              for level in range(hierarchy.num_levels + 1)))
        starts = (0, *(count + x for x in hierarchy.level_starts))
        packed = torch.cat([x + start for x, start in zip(orders, starts)])
        place = torch.arange(total)
        place[count:] += rows - count
        keys = torch.zeros(columns, dtype=torch.int64)
        keys[place] = packed
        # An empty window hides padding.
        limits = torch.zeros((hierarchy.ndim, 4, columns), dtype=torch.int32)
        boxes = torch.cat(boxes, dim=1).clamp(0, max(hierarchy.shape))
        limits[..., place] = boxes.permute(2, 0, 1).int()
        points = _points(hierarchy.shape)[keys[:rows]].int()
        points[count:] = -1  # in nobody's window
        # Each a tensor of its own: views would carry their strides along.
        mask_mod = _mask_mod([x.clone() for x in points.unbind(1)],
                             [[x.clone() for x in axis] for axis in limits])
        block_mask = _block_mask(points[:count] // hierarchy.cell_size,
                                 columns, mask_mod)
    return Layout(keys[:rows], keys[:count].argsort(), keys, block_mask)


def _mask_mod(points: List[Tensor], boxes: List[List[Tensor]]) -> Callable:
    """Element visibility; per axis int32 ``[rows]``, four ``[columns]``."""

    def mask_mod(batch, head, row, column):
        window, hole = [], []
        for point, (low, high, hole_low, hole_high) in zip(points, boxes):
            here = point[row]
            window += here >= low[column], here < high[column]
            hole += here >= hole_low[column], here < hole_high[column]
        return reduce(and_, window) & ~reduce(and_, hole)

    return mask_mod


def _block_mask(cells: Tensor, columns: int,
                mask_mod: Callable) -> pytorch.BlockMask:
    """The blocks that are visible in part, and those that are wholly.

    Queries of one leaf cell see the same keys; in causal attention, each the
    keys of the one before it and one more. So of those of a cell that lie in
    one block, the first and the last are asked.

    ``cells`` are int ``[N, d]``, the leaf cell of each row but padding.
    """
    block = torch.arange(len(cells)) // BLOCK
    _, size = torch.stack([block, _z_order(cells)]).unique_consecutive(
        return_counts=True, dim=1)
    last = size.cumsum(0) - 1
    block = block[last]

    def rows_of(found: Tensor) -> Tensor:
        # bool [pieces of cells, column blocks] -> [row blocks, column blocks]
        total = found.new_zeros((len(block), found.shape[1]), dtype=torch.int)
        total.index_add_(0, block, found.int())
        return total[:int(block[-1]) + 1] > 0

    def seen(row: Tensor) -> Tensor:
        # [pieces, columns] -> [pieces, column blocks, BLOCK]
        found = mask_mod(None, None, row[:, None], torch.arange(columns))
        return found.view(len(row), -1, BLOCK)

    some = rows_of(seen(last).any(-1))
    full = ~rows_of(~seen(last - size + 1).all(-1))
    return pytorch.BlockMask.from_kv_blocks(
        *_as_lists(some & ~full),
        *(_as_lists(full) if full.any() else ()),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod)


def _as_lists(blocks: Tensor) -> Tuple[Tensor, Tensor]:
    """Counts ``[1, 1, rows]`` and indices ``[1, 1, rows, columns]``.

    ``blocks``: bool ``[rows, columns]``. The indices of True come first.
    """
    index = (~blocks).to(torch.uint8).argsort(dim=1, stable=True)
    return blocks.sum(1).int()[None, None], index.int()[None, None]


# ----------------------------------------------------------------- the call
def _dense(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable,
           block_mask: pytorch.BlockMask,
           scale: float) -> Tuple[Tensor, Tensor]:
    """flex_attention's own dense form, with its own gradient.

    The public function refuses gradients on a CPU although the operator
    behind it has them; lse is in base 2 there.
    """
    from torch._higher_order_ops.flex_attention import flex_attention
    out, lse = flex_attention(query, key, value, score_mod,
                              block_mask.as_tuple(), scale, {})[:2]
    return out, lse * log(2)


@lru_cache(maxsize=None)
def _compiled() -> Callable:
    # A graph break would fall back to the dense form unnoticed.
    return torch.compile(pytorch.flex_attention, dynamic=False, fullgraph=True)


def attend(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable,
           block_mask: pytorch.BlockMask, scale: float,
           return_lse: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """``[B, heads, rows or columns, head_dim]`` -> output and lse.

    On a GPU the kernel is compiled once for each geometry. On a CPU, and for
    float64 everywhere, memory is quadratic, except for inference without
    lse, which is compiled there too.
    """
    args = (query, key, value, score_mod, block_mask, scale)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in args[:3])
    on_cpu = query.device.type == 'cpu'
    if query.dtype == torch.float64 or on_cpu and (grad or return_lse):
        return _dense(*args)
    wanted = pytorch.AuxRequest(lse=True) if return_lse else None
    with torch._dynamo.config.patch(cache_size_limit=_MAX_KERNELS):
        found = _compiled()(*args, return_aux=wanted)
    return (found[0], found[1].lse) if return_lse else (found, None)


def arrange(query: Tensor, key: Tensor, value: Tensor,
            hierarchy: Hierarchy) -> tuple:
    """What :func:`attend` takes, from the arguments of :func:`flex`."""
    plan = layout(hierarchy, query.device)

    def keys(tokens: Tensor) -> Tensor:
        x = tokens.flatten(1, hierarchy.ndim)
        if hierarchy.num_levels:
            levels = average_pyramid(tokens, hierarchy, None)
            x = torch.cat([x, pack(levels, hierarchy.ndim).to(x.dtype)], 1)
        # [B, columns, heads, head_dim] -> [B, heads, columns, head_dim]
        return x.index_select(1, plan.keys).transpose(1, 2)

    rows = query.flatten(1, hierarchy.ndim).index_select(1, plan.queries)
    masses = packed_mass(hierarchy, None, query.device)[0]
    weight = torch.cat([masses.new_ones(hierarchy.num_tokens), masses])
    # Without mass it is -inf, which hides a key.
    bias = weight.to(accumulation_dtype(query.dtype)).log()[plan.keys]

    def score_mod(score, batch, head, row, column):
        return score + bias[column]

    return (rows.transpose(1, 2), keys(key), keys(value), score_mod,
            plan.block_mask, query.shape[-1]**-.5)


def flex(query: Tensor,
         key: Tensor,
         value: Tensor,
         hierarchy: Hierarchy,
         return_lse: bool = True) -> Tuple[Tensor, Optional[Tensor]]:
    """FMA by flex_attention, differentiable by autograd.

    Query, key and value are ``[B, *grid, heads, head_dim]``; on a GPU
    ``head_dim`` is a power of two from 16 on. Returns the output, and lse
    ``[B, *grid, heads]`` in float32 (float64 for float64) or None.
    """
    hierarchy = hierarchy.trimmed()
    plan = layout(hierarchy, query.device)
    out, lse = attend(*arrange(query, key, value, hierarchy), return_lse)

    def restore(x: Tensor) -> Tensor:
        # [B, heads, rows, ...] -> [B, *grid, heads, ...]
        x = x.transpose(1, 2).index_select(1, plan.places)
        return x.unflatten(1, hierarchy.shape)

    return restore(out), None if lse is None else restore(lse)
