"""How the tokens of a cell become the summaries that far queries attend to.

Every form maps tokens ``[B, *grid, heads, head_dim]`` to one tensor per level
``[B, *grid_l, rank**d, heads, head_dim]`` and equals the mean over the real
tokens of each sub-cell at the start of training.
"""

from typing import List, Optional, Set, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from fma_kernels import Hierarchy, pooling


class AverageSummaries(nn.Module):
    """Mean over the real tokens of each sub-cell; nothing to learn.

    Args:
        ndim, cell_size, rank, head_dim, max_levels: As the learned forms.
            They are not needed here and accepted for a common interface.
    """

    learned = False

    def __init__(self,
                 ndim: int,
                 cell_size: int,
                 rank: int,
                 head_dim: int,
                 max_levels: Optional[int] = None) -> None:
        super().__init__()

    def forward(self,
                x: torch.Tensor,
                hierarchy: Hierarchy,
                key_mask: Optional[torch.Tensor] = None) -> List[torch.Tensor]:
        """Pool ``[B, *grid, heads, head_dim]`` at every level."""
        return pooling.average_pyramid(x, hierarchy, key_mask)


class GroupedConvSummaries(nn.Module):
    """Learned basis functions per channel over the whole cell.

    The authors' strided depthwise convolution (arXiv 2310.11960, section
    3.2): one weight set per level, shared by all cells and heads. Stored as
    ``delta`` relative to the average, W = (1[own sub-cell] + delta) / size,
    since a plain weight near 1 / size would not survive an optimiser step.
    With m real tokens in sub-cell a the summary is
    (size / m) * sum_real W x = mean + sum_real(delta * x) / m.

    Args:
        ndim (int): Axes of the token grid, 1 or 2.
        cell_size (int): Side of a leaf cell.
        rank (int): Sub-cells per axis; divides ``cell_size``.
        head_dim (int): Channels per head.
        max_levels (int, optional): Levels that own weights; deeper
            hierarchies are clipped to it by the attention layer. Defaults to
            8 in 1D and to 4 in 2D, where a weight set has
            ``(cell_size * 2**(l - 1))**2`` taps.
    """

    learned = True

    def __init__(self,
                 ndim: int,
                 cell_size: int,
                 rank: int,
                 head_dim: int,
                 max_levels: Optional[int] = None) -> None:
        super().__init__()
        if max_levels is None:
            max_levels = 8 if ndim == 1 else 4
        if max_levels < 1:
            raise ValueError(f'max_levels must be at least 1, got '
                             f'{max_levels}')
        self.ndim = ndim
        self.max_levels = max_levels
        # Level l: [rank**d, w_l**d tokens (row-major), head_dim].
        self.delta = nn.ParameterList(
            nn.Parameter(
                torch.zeros(rank**ndim, (cell_size *
                                         2**level)**ndim, head_dim))
            for level in range(max_levels))

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters whose decay would pull towards nothing."""
        return {f'delta.{i}' for i in range(self.max_levels)}

    def idle(self, num_levels: int) -> torch.Tensor:
        """A zero that depends on the weight sets above ``num_levels``.

        A small grid needs few levels; adding this to anything keeps the
        other sets in the graph, so that DDP finds no unused parameter.
        """
        return sum(delta.sum() for delta in self.delta[num_levels:]) * 0

    def forward(self,
                x: torch.Tensor,
                hierarchy: Hierarchy,
                key_mask: Optional[torch.Tensor] = None) -> List[torch.Tensor]:
        """Summarise tokens at every level.

        Args:
            x (Tensor): ``[B, *grid, heads, head_dim]``.
            hierarchy (Hierarchy): With at most ``max_levels`` levels.
            key_mask (Tensor, optional): bool ``[B, *grid]``, True = real.

        Returns:
            list[Tensor]: Per level ``[B, *grid_l, rank**d, heads,
            head_dim]``.
        """
        if key_mask is not None:
            x = x.masked_fill(~key_mask[..., None, None], 0)
        means = pooling.average_pyramid(x, hierarchy, key_mask)
        masses = pooling.masses(hierarchy, key_mask, x.device)
        out = []
        for level, (mean, mass) in enumerate(zip(means, masses)):
            grid, width = hierarchy.grids[level], hierarchy.widths[level]
            cells = _cells(x, grid, width)  # [head_dim, cells*heads, taps]
            delta = self.delta[level].to(x.dtype).permute(2, 1, 0)
            part = torch.bmm(cells, delta)  # [head_dim, cells*heads, rank**d]
            part = part.unflatten(1, (x.shape[0], *grid, x.shape[-2]))
            # -> [B, *grid_l, rank**d, heads, head_dim]
            axes = tuple(range(1, self.ndim + 2))
            part = part.permute(*axes, self.ndim + 3, self.ndim + 2, 0)
            # Divided in float32 or wider: a large mass overflows in half.
            real = mass.clamp(min=1)[..., None, None]
            dtype = pooling.accumulation_dtype(x.dtype)
            out.append(mean + (part.to(dtype) / real).to(x.dtype))
        return out


def _cells(x: torch.Tensor, grid: Tuple[int, ...], width: int) -> torch.Tensor:
    """Tokens ``[B, *grid, heads, D]`` as ``[D, B*cells*heads, width**d]``.

    A ragged border is filled with zeros, which add nothing to the sums.
    """
    ndim = len(grid)
    missing = [g * width - n for g, n in zip(grid, x.shape[1:-2])]
    if any(missing):
        pad = [0, 0, 0, 0]  # head_dim and heads, then the grid, last first
        for extra in reversed(missing):
            pad += [0, extra]
        x = F.pad(x, pad)
    for axis in reversed(range(ndim)):
        x = x.unflatten(1 + axis, (grid[axis], width))
    # Axes now: B, (g, w) per axis, heads, D.
    outer = [1 + 2 * axis for axis in range(ndim)]
    inner = [2 + 2 * axis for axis in range(ndim)]
    x = x.permute(x.ndim - 1, 0, *outer, x.ndim - 2, *inner)
    return x.reshape(x.shape[0], -1, width**ndim)


SUMMARIES = {
    'avg': AverageSummaries,
    'grouped_conv': GroupedConvSummaries,
}


def build_summaries(name: str, **kwargs: int) -> nn.Module:
    """Build a pooling form by name.

    Args:
        name (str): One of ``SUMMARIES``.
        **kwargs: ``ndim``, ``cell_size``, ``rank``, ``head_dim`` and
            ``max_levels``.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in SUMMARIES:
        raise ValueError(f'summaries={name!r} is unknown; allowed: '
                         f'{sorted(SUMMARIES)}')
    return SUMMARIES[name](**kwargs)
