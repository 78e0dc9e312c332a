"""How the tokens of a cell become the summaries that far queries attend to.

Every form maps tokens ``[B, *grid, heads, head_dim]`` to packed summaries of
all levels ``[B, M_total, heads, head_dim]``, as the op takes them
(``fma_kernels.pooling.unpack`` gives views per level), and equals the mean
over the real tokens of each sub-cell at the start of training. The
mathematics is in ``fma_kernels.summaries``.

All forms have two attributes: ``learned``, and ``level_limit``, the number of
levels to which the attention layer clips a hierarchy (None: any number).
"""

from typing import List, Optional, Set, Tuple, Union

import torch
import torch.nn as nn

from fma_kernels import Hierarchy
from fma_kernels.summaries import average_summaries, join, learned_summaries

from .checks import typed


class AverageSummaries(nn.Module):
    """Mean over the real tokens of each sub-cell; nothing to learn.

    Args:
        ndim, cell_size, rank, head_dim, max_levels: As the learned forms.
            They are not needed here and accepted for a common interface.
    """

    learned = False
    level_limit = None

    @typed
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
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Pool ``[B, *grid, heads, head_dim]`` at every level."""
        return average_summaries(x, hierarchy, key_mask)


class _LearnedSummaries(nn.Module):
    """What the learned forms share: weights as offsets from the average.

    A plain weight near 1 / size would not survive an optimiser step, so the
    parameters hold what is added to it, and start at zero. They are bare
    parameters, which no host initialises, and must not decay: decay would
    pull towards the mean, not towards small weights.
    """

    learned = True
    # Of ``fma_kernels.summaries.learned_summaries``.
    form: str
    # Weight sets where ``max_levels`` is None, by ndim.
    default_levels = {1: 8, 2: 4}
    least_levels = 1

    @typed
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

    def weights(self) -> List[torch.Tensor]:
        """In the order in which levels need them."""
        raise NotImplementedError

    def forward(self,
                x: torch.Tensor,
                hierarchy: Hierarchy,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Summarise tokens at every level.

        Args:
            x (Tensor): ``[B, *grid, heads, head_dim]``.
            hierarchy (Hierarchy): With at most ``level_limit`` levels.
            key_mask (Tensor, optional): bool ``[B, *grid]``, True = real.

        Returns:
            Tensor: ``[B, M_total, heads, head_dim]`` in the dtype of ``x``.
        """
        return learned_summaries(self.form, x, self.weights(), hierarchy,
                                 key_mask)

    def idle(self, num_levels: int) -> Optional[torch.Tensor]:
        """A zero that depends on the weights ``num_levels`` do not need.

        A small grid needs few levels; adding this to anything keeps the
        other weights in the graph, so that DDP finds no unused parameter.
        None where all weights are used, or nobody asks for gradients.
        """
        if not torch.is_grad_enabled():
            return None
        unused = self.weights()[num_levels:]
        return sum(weight.sum() for weight in unused) * 0 if unused else None


class _DirectSummaries(_LearnedSummaries):
    """Every level straight from the tokens, with weights of its own."""

    @typed
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

    @property
    def level_limit(self) -> int:
        return self.max_levels

    def weights(self) -> List[torch.Tensor]:
        return list(self.delta)


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

    form = 'grouped_conv'

    @staticmethod
    def _channels(head_dim: int) -> Tuple[int, ...]:
        return (head_dim, )


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

    form = 'conv'
    default_levels = {1: 4, 2: 2}

    @staticmethod
    def _channels(head_dim: int) -> Tuple[int, ...]:
        return (head_dim, head_dim)


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

    form = 'hierarchical'
    least_levels = 2
    level_limit = None

    @typed
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

    def weights(self) -> List[torch.Tensor]:
        return [self.delta_cell, *self.delta_step]

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
        steps = self.delta_step
        return join(children, mass, steps[min(level, len(steps)) - 1])


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
