"""Tokens and summaries in the order the tiles read them: heads first."""
from math import prod
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiling import Tiling


class Workspace:
    """Scratch memory by name, for one pass over an op's inputs.

    Slabs and chunks write over what the ones before them have left: fresh
    pages from the system cost more than the work done on them.

    Args:
        dtype: of all memory.
        device: of all memory.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._held: Dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Contiguous memory with anything in it, valid until taken again."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=self.dtype, device=self.device)
            self._held[name] = held
        return held[:size].view(shape)


class Rows(NamedTuple):
    """Keys with their values, to gather: a cell or a summary per row.

    One memory block ``[heads, rows + 1, tokens a row, 2 * head_dim + 1]``:
    the key, a bias, the value. The bias meets a query channel of ones and
    holds log(mass), or -inf where there is no real key. The last row is
    empty: lists shorter than the longest end with it.
    """
    data: Tensor

    @property
    def count(self) -> int:
        return self.data.shape[1] - 1

    @property
    def tokens(self) -> int:
        return self.data.shape[2]

    @property
    def _dim(self) -> int:
        return self.data.shape[3] // 2

    @property
    def key(self) -> Tensor:
        """Keys alone, ``[..., head_dim]``."""
        return self.data[..., :self._dim]

    @property
    def biased_key(self) -> Tensor:
        """Keys and bias, ``[..., head_dim + 1]``."""
        return self.data[..., :self._dim + 1]

    @property
    def value(self) -> Tensor:
        """Values, ``[..., head_dim]``."""
        return self.data[..., self._dim + 1:]


def _empty_rows(space: Workspace, name: str, heads: int, count: int,
                tokens: int, dim: int) -> Rows:
    """Uninitialised rows but for the last, which is never attended."""
    data = space.take(name, heads, count + 1, tokens, 2 * dim + 1)
    data[:, -1] = 0
    data[:, -1, :, dim] = -torch.inf
    return Rows(data)


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
    view = cells.unflatten(2,
                           plan.cell).unflatten(1,
                                                (batch, *groups, *plan.group))
    order = [2 + kind * d + axis for axis in range(d) for kind in range(3)]
    return view.permute(1, *order, 0, 2 + 3 * d)


def to_cells(x: Tensor, plan: Tiling, out: Tensor) -> None:
    """Copies ``x [B, *grid, heads, c]`` into ``[heads, B * cells, t, c]``.

    Tokens that only pad the grid become zeros.
    """
    padded = tuple(n * width for n, width in zip(plan.grid, plan.cell))
    view = _as_grid(out, plan, x.shape[0])
    view.copy_(_pad_grid(x, padded).reshape(view.shape))


def from_cells(cells: Tensor, plan: Tiling, out: Tensor) -> None:
    """Copies ``[heads, B * cells, t, c]`` into ``out [B, *grid, heads, c]``.

    The inverse of :func:`to_cells`; padding tokens are dropped.
    """
    padded = tuple(n * width for n, width in zip(plan.grid, plan.cell))
    batch, *shape = out.shape[:-2]
    view = _as_grid(cells, plan, batch)
    if padded == tuple(shape):
        out.view(view.shape).copy_(view)
        return
    whole = view.reshape(batch, *padded, *out.shape[-2:])
    out.copy_(whole[(slice(None), *(slice(size) for size in shape))])


def pack_queries(query: Tensor, plan: Tiling, scale: float,
                 space: Workspace) -> Tensor:
    """Scaled queries with a channel of ones, ``[heads, B * cells, t, c + 1]``.
    """
    batch, (heads, dim) = query.shape[0], query.shape[-2:]
    packed = space.take('query', heads, batch * plan.num_cells,
                        plan.cell_tokens, dim + 1)
    to_cells(query, plan, packed[..., :dim])
    packed[..., :dim] *= scale
    packed[..., dim] = 1
    return packed


def pack_tokens(key: Tensor, value: Tensor, key_mask: Optional[Tensor],
                plan: Tiling, space: Workspace) -> Rows:
    """Keys and values of all tokens, a row for every cell."""
    if key_mask is not None:
        absent = ~key_mask[..., None, None]
        key, value = key.masked_fill(absent, 0), value.masked_fill(absent, 0)
    batch, *grid, heads, dim = key.shape
    count = batch * plan.num_cells
    rows = _empty_rows(space, 'tokens', heads, count, plan.cell_tokens, dim)
    to_cells(key, plan, rows.key[:, :count])
    to_cells(value, plan, rows.value[:, :count])

    padded = [n * width for n, width in zip(plan.grid, plan.cell)]
    bias = rows.biased_key[:, :count, :, dim]
    if key_mask is None and padded == grid:
        bias.zero_()
    else:
        if key_mask is None:
            key_mask = torch.ones((batch, *grid),
                                  dtype=torch.bool,
                                  device=key.device)
        real = space.take('real', 1, count, plan.cell_tokens, 1)
        to_cells(key_mask[..., None, None].to(space.dtype), plan, real)
        bias.copy_(real[..., 0].log())  # 0 or -inf
    return rows


def pack_summaries(key: Tensor, value: Tensor, mass: Tensor, use_mass: bool,
                   space: Workspace) -> Rows:
    """Summaries ``[B, M, heads, c]`` with masses ``[B or 1, M]``, a row each.
    """
    batch, count, heads, dim = key.shape
    mass = mass.expand(batch, -1)
    absent = (mass == 0)[..., None, None]
    rows = _empty_rows(space, 'summaries', heads, batch * count, 1, dim)
    for out, x in ((rows.key, key), (rows.value, value)):
        # What is absent may hold anything, even NaN.
        x = x.masked_fill(absent, 0).flatten(0, 1)
        out[:, :-1, 0].copy_(x.transpose(0, 1))
    bias = mass.to(space.dtype).log() if use_mass else torch.zeros_like(
        mass, dtype=space.dtype).masked_fill(mass == 0, -torch.inf)
    rows.biased_key[:, :-1, 0, dim] = bias.flatten()
    return rows


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """``total[:, index] += rows``, in a fixed order on every device."""
    if total.is_cuda:  # index_add would use atomics there
        total.index_put_((torch.arange(total.shape[0],
                                       device=total.device)[:, None], index),
                         rows,
                         accumulate=True)
    else:
        total.index_add_(1, index, rows)
