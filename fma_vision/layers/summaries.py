"""How the tokens of a cell become the summaries that far queries attend to.

Every form maps tokens ``[B, *grid, heads, head_dim]`` to one tensor per level
``[B, *grid_l, rank**d, heads, head_dim]`` and equals the mean over the real
tokens of each sub-cell at the start of training.

All forms have two attributes: ``learned``, and ``level_limit``, the number of
levels to which the attention layer clips a hierarchy (None: any number).
"""

from dataclasses import replace
from typing import List, Optional, Set, Tuple, Union

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
    level_limit = None

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


class _LearnedSummaries(nn.Module):
    """What the learned forms share: weights as offsets from the average.

    A plain weight near 1 / size would not survive an optimiser step, so the
    parameters hold what is added to it, and start at zero. They are bare
    parameters, which no host initialises, and must not decay: decay would
    pull towards the mean, not towards small weights.
    """

    learned = True
    # Weight sets where ``max_levels`` is None, by ndim.
    default_levels = {1: 8, 2: 4}
    least_levels = 1

    def __init__(self,
                 ndim: int,
                 cell_size: int,
                 rank: int,
                 head_dim: int,
                 max_levels: Optional[int] = None) -> None:
        super().__init__()
        if max_levels is None:
            max_levels = self.default_levels[ndim]
        if max_levels < self.least_levels:
            raise ValueError(f'max_levels must be at least '
                             f'{self.least_levels}, got {max_levels}')
        self.ndim = ndim
        self.max_levels = max_levels

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters whose decay would pull towards nothing."""
        return {name for name, _ in self.named_parameters()}

    def _unused(self, num_levels: int) -> List[nn.Parameter]:
        """Weights that a hierarchy of ``num_levels`` does not touch."""
        raise NotImplementedError

    def idle(self, num_levels: int) -> Optional[torch.Tensor]:
        """A zero that depends on the weights ``num_levels`` do not need.

        A small grid needs few levels; adding this to anything keeps the
        other weights in the graph, so that DDP finds no unused parameter.
        None where all weights are used.
        """
        unused = self._unused(num_levels)
        return sum(weight.sum() for weight in unused) * 0 if unused else None


class _DirectSummaries(_LearnedSummaries):
    """Every level straight from the tokens, with weights of its own.

    W = (1[own sub-cell] + delta) / size. With m real tokens in sub-cell a
    the summary is (size / m) * sum_real W x = mean + sum_real(delta x) / m.
    """

    def __init__(self,
                 ndim: int,
                 cell_size: int,
                 rank: int,
                 head_dim: int,
                 max_levels: Optional[int] = None) -> None:
        super().__init__(ndim, cell_size, rank, head_dim, max_levels)
        # Level l: w_l**d tokens in row-major order.
        self.delta = nn.ParameterList(
            nn.Parameter(
                torch.zeros(rank**ndim, (
                    cell_size * 2**level)**ndim, *self._channels(head_dim)))
            for level in range(self.max_levels))

    @staticmethod
    def _channels(head_dim: int) -> Tuple[int, ...]:
        """Shape of the weight of one token in one summary."""
        raise NotImplementedError

    @staticmethod
    def _combine(x: torch.Tensor, delta: torch.Tensor, grid: Tuple[int, ...],
                 width: int) -> torch.Tensor:
        """The sums of delta * x, ``[B, *grid_l, rank**d, heads, D]``."""
        raise NotImplementedError

    @property
    def level_limit(self) -> int:
        return self.max_levels

    def _unused(self, num_levels: int) -> List[nn.Parameter]:
        return list(self.delta)[num_levels:]

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
        x = _without_masked(x, key_mask)
        means = pooling.average_pyramid(x, hierarchy, key_mask)
        masses = pooling.masses(hierarchy, key_mask, x.device)
        out = []
        for level, (mean, mass) in enumerate(zip(means, masses)):
            part = self._combine(x, self.delta[level].to(x.dtype),
                                 hierarchy.grids[level],
                                 hierarchy.widths[level])
            out.append(mean + _per_token(part, mass).to(x.dtype))
        return out


class GroupedConvSummaries(_DirectSummaries):
    """Learned basis functions per channel over the whole cell.

    The authors' strided depthwise convolution (arXiv 2310.11960, section
    3.2): one weight set ``[rank**d, w_l**d, head_dim]`` per level, shared by
    all cells and heads, stored as the offset ``delta`` from the average.

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

    @staticmethod
    def _channels(head_dim: int) -> Tuple[int, ...]:
        return (head_dim, )

    @staticmethod
    def _combine(x: torch.Tensor, delta: torch.Tensor, grid: Tuple[int, ...],
                 width: int) -> torch.Tensor:
        return _depthwise(x, delta, grid, width)


class ConvSummaries(_DirectSummaries):
    """Learned basis functions that also mix the channels of a head.

    As :class:`GroupedConvSummaries` with a full matrix for every token of
    the cell: one weight set ``[rank**d, w_l**d, head_dim out, head_dim in]``
    per level.

    Args:
        ndim, cell_size, rank, head_dim: As :class:`GroupedConvSummaries`.
        max_levels (int, optional): As :class:`GroupedConvSummaries`.
            Defaults to 4 in 1D and to 2 in 2D, since a weight set is
            ``head_dim`` times as large.
    """

    default_levels = {1: 4, 2: 2}

    @staticmethod
    def _channels(head_dim: int) -> Tuple[int, ...]:
        return (head_dim, head_dim)

    @staticmethod
    def _combine(x: torch.Tensor, delta: torch.Tensor, grid: Tuple[int, ...],
                 width: int) -> torch.Tensor:
        parts, ndim = delta.shape[0], len(grid)
        cells = _cells(x, grid, width).flatten(ndim + 2)
        # [rank**d, taps, out, in] -> [rank**d * out, taps * in]
        weight = delta.transpose(1, 2).flatten(2).flatten(0, 1)
        # [B, *grid, heads, rank**d, D] -> [B, *grid, rank**d, heads, D]
        part = F.linear(cells, weight).unflatten(-1, (parts, x.shape[-1]))
        return part.transpose(ndim + 1, ndim + 2)


class HierarchicalSummaries(_LearnedSummaries):
    """Tokens to leaf cells, then children to parents, level by level.

    Level 1 is as :class:`GroupedConvSummaries`. Above it, the multipole to
    multipole step: sub-cell a of a parent joins its 2**d children c,

        parent_a = sum_c (mass_c / mass_a) * M_c child_c

    with one matrix M_c = 1 + ``delta_step`` for each position of a child,
    shared by all cells, parts and heads. O(1) parameters and, over all
    levels, O(n) cost.

    Args:
        ndim (int): Axes of the token grid, 1 or 2.
        cell_size (int): Side of a leaf cell.
        rank (int): Sub-cells per axis; divides ``cell_size``.
        head_dim (int): Channels per head.
        max_levels (int, optional): Levels that own weights, at least 2; the
            last step serves all levels above. Defaults to 8 in 1D and to 4
            in 2D.
        shared (bool): One step for all levels, so that a model runs at
            lengths and resolutions with levels it never saw; ``max_levels``
            is then not used. Defaults to False.
    """

    least_levels = 2
    level_limit = None

    def __init__(self,
                 ndim: int,
                 cell_size: int,
                 rank: int,
                 head_dim: int,
                 max_levels: Optional[int] = None,
                 shared: bool = False) -> None:
        super().__init__(ndim, cell_size, rank, head_dim,
                         2 if shared else max_levels)
        self.rank = rank
        self.delta_cell = nn.Parameter(
            torch.zeros(rank**ndim, cell_size**ndim, head_dim))
        # Step l, from level l to l + 1: [2**d children, D out, D in].
        self.delta_step = nn.ParameterList(
            nn.Parameter(torch.zeros(2**ndim, head_dim, head_dim))
            for _ in range(self.max_levels - 1))

    def _unused(self, num_levels: int) -> List[nn.Parameter]:
        unused = list(self.delta_step)[max(num_levels - 1, 0):]
        return unused if num_levels else [self.delta_cell, *unused]

    def step(self, children: torch.Tensor, mass: torch.Tensor,
             level: int) -> torch.Tensor:
        """Join the children of each parent.

        Args:
            children (Tensor): Summaries ``[..., 2**d, heads, head_dim]``,
                the children in row-major order.
            mass (Tensor): Their real tokens, ``[..., 2**d]``, broadcastable.
            level (int): Of the children, from 1.

        Returns:
            Tensor: Parents ``[..., heads, head_dim]`` in the dtype of
            ``children``; 0 where all masses are 0.
        """
        mass = mass.to(children.dtype)
        share = mass / mass.sum(-1, keepdim=True).clamp(min=1)
        weighted = children * share[..., None, None]
        delta = self.delta_step[min(level, len(self.delta_step)) - 1]
        # [2**d, out, in] -> [out, 2**d * in]
        weight = delta.to(children.dtype).transpose(0, 1).flatten(1)
        mixed = F.linear(weighted.transpose(-3, -2).flatten(-2), weight)
        # Under autocast the product is in half precision, the sum is not.
        return weighted.sum(-3) + mixed.to(children.dtype)

    def forward(self,
                x: torch.Tensor,
                hierarchy: Hierarchy,
                key_mask: Optional[torch.Tensor] = None) -> List[torch.Tensor]:
        """Summarise tokens at every level.

        Args:
            x (Tensor): ``[B, *grid, heads, head_dim]``.
            hierarchy (Hierarchy): With any number of levels.
            key_mask (Tensor, optional): bool ``[B, *grid]``, True = real.

        Returns:
            list[Tensor]: Per level ``[B, *grid_l, rank**d, heads,
            head_dim]``.
        """
        if not hierarchy.num_levels:
            return []
        x = _without_masked(x, key_mask)
        leaves = replace(hierarchy, num_levels=1)
        mean, = pooling.average_pyramid(x, leaves, key_mask)
        mass, = pooling.masses(leaves, key_mask, x.device)
        part = _depthwise(x, self.delta_cell.to(x.dtype), leaves.grids[0],
                          leaves.widths[0])
        # Carried upwards in float32 or wider, rounded once per level.
        part = _per_token(part, mass)
        cells = mean.to(part.dtype) + part
        out = [cells.to(x.dtype)]
        lattice = pooling.cells_to_lattice(cells, self.rank, self.ndim)
        mass = pooling.cells_to_lattice(mass, self.rank, self.ndim)
        for level, grid in enumerate(hierarchy.grids[1:], 1):
            sizes = tuple(self.rank * size for size in grid)
            mass = _families(mass, sizes)
            lattice = self.step(_families(lattice, sizes), mass, level)
            mass = mass.sum(-1)
            cells = pooling.lattice_to_cells(lattice, grid, self.rank)
            out.append(cells.to(x.dtype))
        return out


def _without_masked(x: torch.Tensor,
                    key_mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Tokens ``[B, *grid, heads, D]`` with 0 where masked: 0 * NaN is NaN."""
    if key_mask is None:
        return x
    return x.masked_fill(~key_mask[..., None, None], 0)


def _per_token(part: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Sums ``[..., heads, D]`` over masses ``[...]``, in float32 or wider.

    A large mass overflows in half precision.
    """
    dtype = pooling.accumulation_dtype(part.dtype)
    return part.to(dtype) / mass.clamp(min=1)[..., None, None]


def _split(x: torch.Tensor, sizes: Tuple[int, ...],
           width: int) -> torch.Tensor:
    """Cut a grid ``[B, *grid, ...]`` into blocks ``[B, size, width, ...]``.

    In 2D ``[B, size0, width, size1, width, ...]``, tail axes untouched. A
    ragged border is filled with zeros, which add nothing to sums.
    """
    ndim = len(sizes)
    missing = [s * width - n for s, n in zip(sizes, x.shape[1:])]
    if any(missing):
        pad = [0, 0] * (x.ndim - 1 - ndim)  # the last axis first
        for extra in reversed(missing):
            pad += [0, extra]
        x = F.pad(x, pad)
    for axis in reversed(range(ndim)):
        x = x.unflatten(1 + axis, (sizes[axis], width))
    return x


def _families(x: torch.Tensor, sizes: Tuple[int, ...]) -> torch.Tensor:
    """Children ``[B, *lattice, ...]`` by parent: ``[B, *sizes, 2**d, ...]``.

    The children of a parent are in row-major order.
    """
    ndim = len(sizes)
    x = _split(x, sizes, 2)
    if ndim == 2:  # [B, s0, 2, s1, 2, ...] -> [B, s0, s1, 2, 2, ...]
        x = x.transpose(2, 3)
    return x.flatten(1 + ndim, 2 * ndim)


def _cells(x: torch.Tensor, grid: Tuple[int, ...], width: int) -> torch.Tensor:
    """Tokens ``[B, *tokens, heads, D]`` by cell: a view.

    Returns:
        Tensor: ``[B, *grid, heads, *(width, ) * d, D]``.
    """
    ndim = len(grid)
    x = _split(x, grid, width)
    outer = [1 + 2 * axis for axis in range(ndim)]
    inner = [2 + 2 * axis for axis in range(ndim)]
    return x.permute(0, *outer, x.ndim - 2, *inner, x.ndim - 1)


def _depthwise(x: torch.Tensor, delta: torch.Tensor, grid: Tuple[int, ...],
               width: int) -> torch.Tensor:
    """Weighted sums over the tokens of each cell, channel by channel.

    Args:
        x (Tensor): ``[B, *tokens, heads, D]``.
        delta (Tensor): ``[rank**d, width**d, D]``, tokens in row-major
            order, in the dtype of ``x``.
        grid (tuple[int]): Cells per axis.
        width (int): Side of a cell.

    Returns:
        Tensor: ``[B, *grid, rank**d, heads, D]``.
    """
    ndim = len(grid)
    if delta.shape[0] == 1:
        # For one summary, a product and a sum of tokens where they lie beat
        # a transposed copy.
        blocks = _split(x, grid, width)  # [B, (g, w) per axis, heads, D]
        taps = delta.reshape(*(width, 1) * ndim, -1)
        part = blocks * taps
        # One axis at a time: several at once are slow on a CPU.
        for axis in reversed(range(ndim)):
            part = part.sum(2 + 2 * axis)
        return part.unsqueeze(1 + ndim)
    cells = _cells(x, grid, width)  # [B, *grid, heads, *taps, D]
    lead = cells.shape[:ndim + 2]
    # Channels lead: [D, B*cells*heads, taps] @ [D, taps, rank**d].
    cells = cells.movedim(-1, 0).flatten(ndim + 3).flatten(1, ndim + 2)
    part = torch.bmm(cells, delta.permute(2, 1, 0)).unflatten(1, lead)
    # [D, B, *grid, heads, rank**d] -> [B, *grid, rank**d, heads, D]
    return part.movedim(0, -1).transpose(ndim + 1, ndim + 2)


SUMMARIES = {
    'avg': AverageSummaries,
    'grouped_conv': GroupedConvSummaries,
    'conv': ConvSummaries,
    'hierarchical': HierarchicalSummaries,
}


def build_summaries(cfg: Union[str, dict], **kwargs: int) -> nn.Module:
    """Build a pooling form by name or config.

    Args:
        cfg (str | dict): One of ``SUMMARIES``, or a dict with ``type`` and
            arguments of the form, such as
            ``dict(type='hierarchical', shared=True)``.
        **kwargs: ``ndim``, ``cell_size``, ``rank``, ``head_dim`` and
            ``max_levels``; what ``cfg`` sets wins.

    Raises:
        ValueError: If the type is unknown, or an argument out of range.
        TypeError: If the form does not take an argument of ``cfg``.
    """
    options = dict(cfg) if isinstance(cfg, dict) else dict(type=cfg)
    name = options.pop('type', None)
    if not isinstance(name, str) or name not in SUMMARIES:
        raise ValueError(f'summaries={cfg!r} is unknown; allowed: '
                         f'{sorted(SUMMARIES)}, or a dict with one of them '
                         'as type')
    return SUMMARIES[name](**{**kwargs, **options})
