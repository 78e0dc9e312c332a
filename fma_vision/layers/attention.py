"""Fast Multipole Attention as layers: projections around the op."""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_kernels.autograd import CoreOp
from fma_kernels.flops import summary_macs
from fma_kernels.ops import geometry_of
from fma_kernels.pooling import constant, packed_size

from .checks import check_rates, typed
from .common import check_tokens, drop_masked, head_dim_of
from .positions import angle_dtype, check_rotary, rotate
from .relative_bias import RelativeBias
from .summaries import build_summaries


class _FMAttention(nn.Module):
    """What the 1D and the 2D layer share; see :class:`FMAttention2D`."""

    ndim: int
    default_rotary_base: float

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 cell_size: int = 4,
                 num_levels: Optional[int] = None,
                 rank: int = 1,
                 summaries: Union[str, dict] = 'avg',
                 max_levels: Optional[int] = None,
                 qkv_bias: bool = True,
                 mass: bool = True,
                 pool_queries: Union[bool, str] = False,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.,
                 backend: str = 'auto',
                 positions: Optional[str] = None,
                 rotary_base: Optional[float] = None,
                 relative_slope: float = 0.) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        # The geometry's own checks, on the smallest grid.
        Hierarchy((1, ) * self.ndim, cell_size, num_levels, rank)
        check_rates(attn_drop=attn_drop, proj_drop=proj_drop)
        if pool_queries != 'learned' and not isinstance(pool_queries, bool):
            raise ValueError("pool_queries must be False, True or 'learned', "
                             f'got {pool_queries!r}')
        if positions not in (None, 'rotary', 'relative'):
            raise ValueError("positions must be None, 'rotary' or 'relative', "
                             f'got {positions!r}')
        if relative_slope and positions != 'relative':
            raise ValueError("relative_slope needs positions='relative', got "
                             f'positions={positions!r}')
        if rotary_base is None:
            rotary_base = self.default_rotary_base
        if positions == 'rotary':
            check_rotary(self.head_dim, rotary_base, self.ndim)
        self.cell_size = cell_size
        self.num_levels = num_levels
        self.rank = rank
        self.mass = mass
        self.pool_queries = pool_queries
        self.attn_drop = attn_drop
        self.backend = backend
        self.causal = False
        self.positions = positions
        self.rotary_base = rotary_base

        def pooling(form: Union[str, dict] = summaries) -> nn.Module:
            return build_summaries(
                form,
                ndim=self.ndim,
                cell_size=cell_size,
                rank=rank,
                head_dim=self.head_dim,
                max_levels=max_levels)

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.key_summaries = pooling()
        self.value_summaries = pooling()
        self.query_summaries: Optional[nn.Module] = None
        if pool_queries:
            learned = pool_queries == 'learned'
            self.query_summaries = pooling() if learned else pooling('avg')
            if learned and not self.query_summaries.learned:
                raise ValueError("pool_queries='learned' needs summaries that "
                                 f'learn, got summaries={summaries!r}')
        # The name that hosts spare from weight decay for Swin.
        self.relative_position_bias_table: Optional[RelativeBias] = None
        if positions == 'relative':
            self.relative_position_bias_table = RelativeBias(
                self.ndim, num_heads, cell_size, rank, max_levels, num_levels,
                relative_slope)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def hierarchy(self, *grid: int) -> Hierarchy:
        """The cells this layer uses on a grid of tokens."""
        tree = Hierarchy(grid, self.cell_size, self.num_levels, self.rank,
                         self.causal).trimmed()
        limit = self.key_summaries.level_limit
        if limit is None or tree.num_levels <= limit:
            return tree
        return Hierarchy(grid, self.cell_size, limit, self.rank, self.causal)

    def attention_macs(self, *grid: int) -> int:
        """Multiply-adds of one image outside the two linear layers."""
        tree, sizes = self.hierarchy(*grid), (self.num_heads, self.head_dim)
        macs = tree.flops(*sizes, pool_queries=bool(self.pool_queries)) // 2
        return macs + sum(
            summary_macs(x.form, tree, *sizes) for x in self._learned())

    def _attend(self, x: torch.Tensor, key_mask: Optional[torch.Tensor],
                offset: Sequence[int]) -> torch.Tensor:
        """See ``forward``; ``offset`` is the position of token 0, by axis."""
        grid = check_tokens(x, self.dim, self.ndim)
        x = drop_masked(x, key_mask)
        # [B, *grid, 3, heads, head_dim]; the views stay strided.
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)
        options: Dict[str, Any] = dict(num_levels=self.num_levels)
        learned = self.key_summaries.learned
        rotary = self.positions == 'rotary'
        if learned or self.positions:
            tree = self.hierarchy(*grid)
            options = dict(num_levels=tree.num_levels)
        if learned or rotary:
            options['key_summaries'] = self.key_summaries(key, tree, key_mask)
        if learned:
            options['value_summaries'] = self.value_summaries(
                value, tree, key_mask)
        relative = self.relative_position_bias_table
        if relative is not None:
            options.update(relative.tables(tree.num_levels))
        if self.pool_queries:
            options['pool_queries'] = True
            if self.query_summaries.learned or rotary:
                options['query_summaries'] = self.query_summaries(
                    query, tree, key_mask)
        if rotary:
            query, key = self._turned(qkv[..., :2, :, :], offset)
            for name in ('query_summaries', 'key_summaries'):
                if name in options:
                    options[name] = self._turned_summaries(
                        options[name], tree, offset)
        if self.causal:
            options['causal'] = True
        if self.training and self.attn_drop:
            options['dropout_p'] = self.attn_drop
        op = fma1d if self.ndim == 1 else fma2d
        out = op(
            query,
            key,
            value,
            cell_size=self.cell_size,
            rank=self.rank,
            mass=self.mass,
            key_mask=key_mask,
            backend=self.backend,
            **options)
        out = out.flatten(-2)  # [B, *grid, dim]
        out = self.proj_drop(self.proj(out))
        for part in self._parts_by_level():
            idle = part.idle(tree.num_levels)
            out = out if idle is None else out + idle
        return out

    def _learned(self) -> List[nn.Module]:
        """Pooling forms with weights."""
        forms = self.key_summaries, self.value_summaries, self.query_summaries
        return [x for x in forms if x is not None and x.learned]

    def _parts_by_level(self) -> List[nn.Module]:
        """What owns weights for each level."""
        if self.relative_position_bias_table is None:
            return self._learned()
        return [*self._learned(), self.relative_position_bias_table]

    # -------------------------------------------------------------- rotary
    def summary_positions(
            self,
            hierarchy: Hierarchy,
            device: torch.device,
            offset: Optional[Sequence[int]] = None) -> List[torch.Tensor]:
        """Centres of the sub-cells of all levels, in tokens.

        Nominal centres, start + (side - 1) / 2, also where a border or a
        mask leaves only some of the tokens.

        Args:
            hierarchy (Hierarchy): The cells.
            device (torch.device): Of the result.
            offset (sequence[int], optional): Position of the first token, by
                axis; 0 by default.

        Returns:
            list[Tensor]: For each axis, floating ``[M_total]``.
        """
        found = _centres(hierarchy, device)
        if offset is None:
            return list(found.unbind())
        return [at + first for at, first in zip(found.unbind(), offset)]

    def _turned(self, query_key: torch.Tensor,
                offset: Sequence[int]) -> Tuple[torch.Tensor, ...]:
        """Queries and keys ``[B, *grid, 2, heads, head_dim]``, rotated."""
        tokens = []
        for axis, size in enumerate(query_key.shape[1:-3]):
            at = _indices(size, query_key.device) + offset[axis]
            # One axis for the pair, one for each axis of the grid after it.
            tokens.append(at.view(size, *[1] * (self.ndim - axis)))
        return rotate(query_key, tokens, self.rotary_base).unbind(-3)

    def _turned_summaries(self, packed: torch.Tensor, hierarchy: Hierarchy,
                          offset: Sequence[int]) -> torch.Tensor:
        """``[B, M_total, heads, head_dim]``, rotated to the centres."""
        h = hierarchy
        if torch.compiler.is_compiling(
        ) and not torch.onnx.is_in_onnx_export():
            found = _opaque_centres(packed.detach(), h.shape, h.cell_size,
                                    h.num_levels, h.rank)
        else:
            found = constant(lambda: _centres(h, packed.device))
        centres = [at + first for at, first in zip(found.unbind(), offset)]
        return rotate(packed, centres, self.rotary_base)

    def extra_repr(self) -> str:
        return (f'heads={self.num_heads}, cell_size={self.cell_size}, '
                f'num_levels={self.num_levels}, rank={self.rank}, '
                f'mass={self.mass}, pool_queries={self.pool_queries!r}, '
                f'positions={self.positions!r}')


class FMAttention2D(_FMAttention):
    """Fast Multipole Attention over a 2D grid (arXiv 2310.11960).

    Tokens attend to the 3 x 3 leaf cells around their own one by one, and to
    all others through summaries that grow coarser with distance, under one
    softmax: O(log n) keys per query.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        cell_size (int): Side of a leaf cell in tokens. Defaults to 4.
        num_levels (int, optional): Levels of summaries; None picks them from
            the grid, 0 is full attention.
        rank (int): Sub-cells per axis of a cell; divides ``cell_size``.
        summaries (str | dict): ``'avg'``, ``'grouped_conv'``, ``'conv'``,
            ``'hierarchical'``, or a dict with one of them as ``type`` and
            its arguments; see :func:`~fma_vision.layers.build_summaries`.
        max_levels (int, optional): Weight sets of learned summaries and of
            relative biases, which reuse their last beyond it.
            ``'grouped_conv'`` and ``'conv'`` clip the levels to it,
            ``'hierarchical'`` reuses its last step beyond.
        qkv_bias (bool): Bias in the query, key, value projection.
        mass (bool): Weigh a summary by the tokens it stands for, as the
            paper does.
        pool_queries (bool | str): The linear variant, O(1) keys per query:
            afar, tokens ask together, with the mean query of their sub-cell
            (True) or with summaries of queries that are learned as those of
            keys are (``'learned'``). Not for causal attention. Defaults to
            False.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.
        backend (str): Backend of the op.
        positions (str, optional): ``'rotary'`` turns queries and keys, half
            of the channels by the row and half by the column
            (:func:`~fma_vision.layers.rotate`). Keys (and queries) are
            pooled as they are, and their summaries turned to the centre of
            their sub-cell: shifting the whole grid changes nothing.
            ``'relative'`` adds learned tables to the logits
            (:class:`~fma_vision.layers.RelativeBias`), of which ``max_levels``
            counts the sets, at quadratic memory with ``pool_queries``. None
            leaves positions to the caller.
        rotary_base (float, optional): Base of the rotary frequencies.
            Defaults to 100, that of the axial form in arXiv 2403.13298:
            maps are shorter than texts.
        relative_slope (float): How steeply relative tables fall with the
            distance at the start, in logits a token in the first head and
            less in the others. Defaults to 0, tables of zeros.

    Raises:
        ValueError: If an argument is out of range, rotary positions meet a
            ``head_dim`` that is no multiple of 4, or ``relative_slope`` is
            given without relative positions.
    """

    ndim = 2
    default_rotary_base = 100.
    # A map that ends in masked tokens gives what it gives without them.
    mask_is_border = True

    def forward(
        self,
        x: torch.Tensor,
        key_mask: Optional[torch.Tensor] = None,
        offset: Sequence[int] = (0, 0)
    ) -> torch.Tensor:
        """Attend from every token to every other.

        Args:
            x (Tensor): ``[B, H, W, dim]``.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real.
                Masked tokens are attended by none, whatever they hold.
            offset (tuple[int, int]): Row and column of the first token.

        Returns:
            Tensor: ``[B, H, W, dim]``.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if not isinstance(offset, (tuple, list)) or len(offset) != 2:
            raise ValueError(f'offset must be (row, column), got {offset!r}')
        return self._attend(x, key_mask, offset)


class FMAttention1D(_FMAttention):
    """Fast Multipole Attention over a sequence (arXiv 2310.11960).

    Args:
        dim, num_heads, cell_size, num_levels, rank, summaries, max_levels,
            qkv_bias, mass, pool_queries, attn_drop, proj_drop, backend,
            positions, relative_slope: As :class:`FMAttention2D`, on tokens
            ``[B, N, dim]``.
        causal (bool): Attend to the left only. Defaults to False.
        rotary_base (float, optional): Base of the rotary frequencies.
            Defaults to 10000.

    Raises:
        ValueError: If an argument is out of range, or rotary positions meet
            an odd ``head_dim``.
    """

    ndim = 1
    default_rotary_base = 10000.

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 *args: Any,
                 causal: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(dim, num_heads, *args, **kwargs)
        if causal and self.pool_queries:
            raise ValueError('pool_queries must be False when causal=True, '
                             f'got {self.pool_queries!r}: a pooled query '
                             'mixes later tokens into earlier outputs')
        self.causal = causal

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None,
                offset: int = 0) -> torch.Tensor:
        """Attend from every token to every other, or to those before it.

        Args:
            x (Tensor): ``[B, N, dim]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real. Masked
                tokens are attended by none; they keep their positions.
            offset (int): Position of the first token.

        Returns:
            Tensor: ``[B, N, dim]``.

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        return self._attend(x, key_mask, (offset, ))


def _centres(hierarchy: Hierarchy, device: torch.device) -> torch.Tensor:
    """Centres of the sub-cells of all levels, by axis: ``[d, M_total]``."""
    index = torch.arange(hierarchy.num_summaries, device=device)
    found = [index.to(angle_dtype(device))] * hierarchy.ndim
    for start, grid, width in zip(hierarchy.level_starts, hierarchy.grids,
                                  hierarchy.widths):
        side = width // hierarchy.rank
        cell = (index - start) // hierarchy.num_parts
        part = (index - start) % hierarchy.num_parts
        for axis in reversed(range(hierarchy.ndim)):
            at = cell % grid[axis] * hierarchy.rank + part % hierarchy.rank
            cell, part = cell // grid[axis], part // hierarchy.rank
            found[axis] = torch.where(index < start, found[axis],
                                      at * side + (side - 1) / 2)
    return torch.stack(found)


# Where sizes are symbolic, a compiler has terms of all levels to calculate
# with, and is at it for minutes.
_opaque_centres = CoreOp(
    'centres', '(Tensor like, SymInt[] grid, SymInt cell_size, '
    'SymInt num_levels, SymInt rank) -> Tensor',
    lambda like, *sizes: _centres(geometry_of(*sizes, False), like.device),
    lambda like, grid, *sizes: like.new_empty(
        (len(grid), packed_size(grid, *sizes)), dtype=angle_dtype(
            like.device))).register()


def _indices(count: int, device: torch.device) -> torch.Tensor:
    """0, 1, ... ``count`` - 1 in the precision of rotary angles."""
    return torch.arange(count, dtype=angle_dtype(device), device=device)
