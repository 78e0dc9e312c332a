"""Learned logits by relative position, near and far."""

import math
from typing import Any, Dict, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table_simple

from .checks import typed
from .positions import resize_loaded

# Far cells are up to 3 away; at the top, where more are, offsets are clamped.
FAR_SIDE = 7


class RelativeBias(nn.Module):
    """Tables that are added to the logits, by the offset key - query.

    ``near_bias [heads, (4 cell_size - 1)**d]`` holds one number for each
    offset of tokens in the near field, ``far_bias [levels, heads, rank**d,
    7**d]`` one for each summary of a cell and each offset of cells, clamped
    to +-3. Levels beyond the last set use that.

    All are zero at the start, or, with ``slope``, ``-slope * 2**(-8 h / n) *
    distance`` in head h = 0, 1, ... of n, with distances in tokens, those of
    summaries from centre to centre: biases in a geometric series of slopes,
    as in ALiBi (arXiv 2108.12409), but from ``slope`` on, and learned. With
    a slope of 1 the first head looks at few tokens nearby. A set that serves
    several levels has the slopes of its own level.

    Tables of another cell size, rank or number of sets are resized when they
    are loaded: the near table as Swin's of another window (bicubic, the zero
    offset stays in the middle), far tables along the sub-cells; missing sets
    are copies of the last.

    Triton's kernels do not take the tables: layers that add them run on the
    backend 'torch' on a GPU, and with ``pool_queries`` on 'naive' everywhere,
    whose memory is quadratic in the tokens.

    Args:
        ndim (int): Axes of the token grid, 1 or 2.
        num_heads (int): Heads.
        cell_size (int): Side of a leaf cell.
        rank (int): Sub-cells per axis of a cell.
        max_levels (int, optional): Sets of far tables. Defaults to 8 in 1D
            and to 4 in 2D.
        num_levels (int, optional): Levels of the layer, if it fixes them: no
            more sets are made.
        slope (float): Of the first head at the start, in logits a token.
            Defaults to 0.

    Raises:
        ValueError: If ``max_levels`` or ``num_levels`` is less than 1, or
            ``slope`` is negative or not finite.
    """

    # As for learned summaries.
    default_levels = {1: 8, 2: 4}

    @typed
    def __init__(self,
                 ndim: int,
                 num_heads: int,
                 cell_size: int,
                 rank: int,
                 max_levels: Optional[int] = None,
                 num_levels: Optional[int] = None,
                 slope: float = 0.) -> None:
        super().__init__()
        if not 0 <= slope < math.inf:
            raise ValueError('slope must be finite and at least 0, got '
                             f'{slope!r}')
        sets = self.default_levels[ndim] if max_levels is None else max_levels
        if num_levels is not None:
            if num_levels < 1:
                raise ValueError("positions='relative' needs far fields: "
                                 'num_levels must be None or at least 1, got '
                                 f'{num_levels}')
            sets = min(sets, num_levels)
        if sets < 1:
            raise ValueError(f'max_levels must be at least 1, got {sets}')
        self.ndim = ndim
        self.cell_size = cell_size
        self.rank = rank
        self.near_bias = nn.Parameter(
            torch.zeros(num_heads, (4 * cell_size - 1)**ndim))
        self.far_bias = nn.Parameter(
            torch.zeros(sets, num_heads, rank**ndim, FAR_SIDE**ndim))
        if slope:
            self._decay(slope)

    @torch.no_grad()
    def _decay(self, slope: float) -> None:
        """Let the tables fall with the distance."""
        heads = len(self.near_bias)
        falls = slope * 2**(-8 * torch.arange(heads) / heads)
        reach = 2 * self.cell_size - 1  # of the near field, in tokens
        near = _distances(torch.arange(-reach, reach + 1.), self.ndim)
        self.near_bias.copy_(-falls[:, None] * near.flatten())
        # Centres of sub-cells against that of the query's cell, in cells.
        parts = (torch.arange(self.rank) + .5) / self.rank - .5
        cells = torch.arange(-(FAR_SIDE // 2), FAR_SIDE // 2 + 1)
        far = _distances((parts[:, None] + cells).flatten(), self.ndim)
        # [rank, 7] for each axis, then all sub-cells before all offsets.
        far = far.view((self.rank, FAR_SIDE) * self.ndim)
        far = far.permute(*range(0, far.ndim, 2), *range(1, far.ndim, 2))
        far = far.reshape(self.far_bias.shape[2:])
        for level, table in enumerate(self.far_bias):
            width = self.cell_size * 2**level
            table.copy_(-falls[:, None, None] * width * far)

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters that should not decay."""
        return {'near_bias', 'far_bias'}

    def tables(self, num_levels: int) -> Dict[str, Any]:
        """What the op takes as ``near_bias`` and, per level, ``far_bias``."""
        sets = self.far_bias.unbind()
        far = [sets[min(i, len(sets) - 1)] for i in range(num_levels)]
        return dict(near_bias=self.near_bias, far_bias=far)

    def idle(self, num_levels: int) -> Optional[torch.Tensor]:
        """A zero that depends on far tables where no level uses them.

        See ``idle`` of learned summaries. One level is enough to bring the
        whole parameter into the graph.
        """
        if num_levels or not torch.is_grad_enabled():
            return None
        return self.far_bias.sum() * 0

    # ------------------------------------------------------------- loading
    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any,
                              **kwargs: Any) -> None:
        for name, resize in (('near_bias', self._resize_near),
                             ('far_bias', self._resize_far)):
            resize_loaded(state_dict, prefix + name,
                          getattr(self, name).shape, resize)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _plane(self, side: int) -> Tuple[int, int]:
        """Sides of a grid of ``ndim`` axes as an image: 1D is one row."""
        return (1, side) if self.ndim == 1 else (side, side)

    def _resize_near(self, table: torch.Tensor) -> torch.Tensor:
        """``[heads, (4 m' - 1)**d]`` to ``[heads, (4 m - 1)**d]``."""
        if table.ndim != 2:
            return table
        heads = len(self.near_bias)
        side = round(table.shape[-1]**(1 / self.ndim))
        if table.shape != (heads, side**self.ndim) or side % 4 != 3:
            return table
        table = _at_least_float32(table).view(heads, *self._plane(side))
        # Offsets are those of a window of two cells a side.
        return resize_rel_pos_bias_table_simple(
            table, self._plane(2 * self.cell_size),
            (heads, *self._plane(4 * self.cell_size - 1))).flatten(1)

    def _resize_far(self, table: torch.Tensor) -> torch.Tensor:
        """``[sets', heads, rank'**d, 7**d]`` to the own sets and rank."""
        sets, heads, _, offsets = self.far_bias.shape
        if table.ndim != 4 or not len(table):
            return table
        rank = round(table.shape[2]**(1 / self.ndim))
        if table.shape[1:] != (heads, rank**self.ndim, offsets):
            return table
        if rank != self.rank:
            lead = table.shape[:2]
            # [sets' * heads, 7**d, *rank']
            parts = _at_least_float32(table).flatten(0, 1).transpose(1, 2)
            parts = F.interpolate(
                parts.unflatten(2, self._plane(rank)),
                self._plane(self.rank),
                mode='bilinear',
                antialias=True)
            table = parts.flatten(2).transpose(1, 2).unflatten(0, lead)
        last = len(table) - 1
        return torch.stack([table[min(i, last)] for i in range(sets)])


def _distances(axis: torch.Tensor, ndim: int) -> torch.Tensor:
    """Lengths ``[n] * ndim`` of vectors with coordinates ``axis [n]``."""
    grid = torch.meshgrid(*[axis] * ndim, indexing='ij')
    return torch.stack(grid).norm(dim=0)


def _at_least_float32(table: torch.Tensor) -> torch.Tensor:
    return table.to(torch.promote_types(table.dtype, torch.float32))
