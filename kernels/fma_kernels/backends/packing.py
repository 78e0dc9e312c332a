"""Tokens and summaries in the order the tiles read them: heads first."""
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiling import Tiling


class Keys(NamedTuple):
    """Rows to gather: a cell of tokens, or one summary, per row.

    The last row is empty: lists shorter than the longest end with it.

    Attributes:
        key: ``[heads, rows + 1, tokens a row, head_dim + 1]``. The last
            channel meets a query channel of ones and holds log(mass), or
            -inf where there is no real key.
        value: ``[heads, rows + 1, tokens a row, head_dim]``.
    """
    key: Tensor
    value: Tensor


def _pad_grid(x: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """Pads the axes after the batch up to ``shape``, with zeros."""
    spec = [0, 0] * (x.dim() - 1 - len(shape))
    for axis in reversed(range(len(shape))):
        spec += [0, shape[axis] - x.shape[1 + axis]]
    return F.pad(x, spec) if any(spec) else x


def _as_grid(cells: Tensor, plan: Tiling, batch: int) -> Tensor:
    """Cell-ordered memory seen as the padded grid.

    ``[heads, B * cells, cell tokens, c]`` ->
    ``[B, groups0, children0, width0, (the same of axis 1), heads, c]``
    """
    d = len(plan.grid)
    groups = [size // side for size, side in zip(plan.grid, plan.group)]
    view = cells.unflatten(2, plan.cell).unflatten(
        1, (batch, *groups, *plan.group))
    order = [2 + kind * d + axis for axis in range(d) for kind in range(3)]
    return view.permute(1, *order, 0, 2 + 3 * d)


def to_cells(x: Tensor, plan: Tiling, out: Tensor) -> None:
    """Copies ``x [B, *grid, heads, c]`` into ``[heads, B * cells, t, c]``.

    Tokens that only pad the grid become zeros.
    """
    padded = tuple(n * width for n, width in zip(plan.grid, plan.cell))
    view = _as_grid(out, plan, x.shape[0])
    view.copy_(_pad_grid(x, padded).reshape(view.shape))


def from_cells(cells: Tensor, plan: Tiling, batch: int,
               shape: Tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The inverse: ``[heads, B * cells, t, c]`` -> ``[B, *grid, heads, c]``.
    """
    padded = tuple(n * width for n, width in zip(plan.grid, plan.cell))
    view = _as_grid(cells, plan, batch)
    out = torch.empty(view.shape, dtype=dtype, device=cells.device)
    out = out.copy_(view).view(batch, *padded, *view.shape[-2:])
    if padded == shape:
        return out
    return out[(slice(None), *(slice(size) for size in shape))].contiguous()


def pack_queries(query: Tensor, plan: Tiling, scale: float,
                 dtype: torch.dtype) -> Tensor:
    """Scaled queries with a channel of ones, ``[heads, B * cells, t, c + 1]``.
    """
    batch, (heads, dim) = query.shape[0], query.shape[-2:]
    packed = torch.empty(
        (heads, batch * plan.num_cells, plan.cell_tokens, dim + 1),
        dtype=dtype, device=query.device)
    to_cells(query, plan, packed[..., :dim])
    packed[..., :dim] *= scale
    packed[..., dim] = 1
    return packed


def pack_tokens(key: Tensor, value: Tensor, key_mask: Optional[Tensor],
                plan: Tiling, dtype: torch.dtype) -> Keys:
    """Keys and values of all tokens, a row for every cell."""
    if key_mask is not None:
        absent = ~key_mask[..., None, None]
        key, value = key.masked_fill(absent, 0), value.masked_fill(absent, 0)
    batch, *grid, heads, dim = key.shape
    rows = batch * plan.num_cells
    keys = torch.empty((heads, rows + 1, plan.cell_tokens, dim + 1),
                       dtype=dtype, device=key.device)
    values = torch.empty((heads, rows + 1, plan.cell_tokens, dim),
                         dtype=dtype, device=key.device)
    to_cells(key, plan, keys[:, :rows, :, :dim])
    to_cells(value, plan, values[:, :rows])
    _end_rows(keys, values)

    padded = [n * width for n, width in zip(plan.grid, plan.cell)]
    if key_mask is None and padded == grid:
        keys[:, :rows, :, dim] = 0
    else:
        if key_mask is None:
            key_mask = torch.ones((batch, *grid), dtype=torch.bool,
                                  device=key.device)
        real = torch.empty((1, rows, plan.cell_tokens, 1), dtype=dtype,
                           device=key.device)
        to_cells(key_mask[..., None, None].to(dtype), plan, real)
        keys[:, :rows, :, dim] = real[..., 0].log()  # 0 or -inf
    return Keys(keys, values)


def pack_summaries(key: Tensor, value: Tensor, mass: Tensor, use_mass: bool,
                   dtype: torch.dtype) -> Keys:
    """Summaries ``[B, M, heads, c]`` with masses ``[B or 1, M]``, a row each.
    """
    batch, count, heads, dim = key.shape
    rows = batch * count
    mass = mass.expand(batch, -1)
    absent = (mass == 0)[..., None, None]
    keys = torch.empty((heads, rows + 1, 1, dim + 1), dtype=dtype,
                       device=key.device)
    values = torch.empty((heads, rows + 1, 1, dim), dtype=dtype,
                         device=key.device)
    for out, x in ((keys[..., :dim], key), (values, value)):
        # What is absent may hold anything, even NaN.
        x = x.masked_fill(absent, 0).flatten(0, 1)
        out[:, :rows, 0].copy_(x.transpose(0, 1))
    bias = mass.to(dtype).log() if use_mass else torch.zeros_like(
        mass, dtype=dtype).masked_fill(mass == 0, -torch.inf)
    keys[:, :rows, 0, dim] = bias.flatten()
    _end_rows(keys, values)
    return Keys(keys, values)


def _end_rows(keys: Tensor, values: Tensor) -> None:
    """The empty row after the last: never attended."""
    keys[:, -1] = 0
    keys[:, -1, :, -1] = -torch.inf
    values[:, -1] = 0
