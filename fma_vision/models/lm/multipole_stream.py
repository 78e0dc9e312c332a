"""Fast Multipole Attention token by token, or chunk by chunk.

Where the native kernels run, one call attends from the new tokens to the
state and to themselves. Elsewhere a chunk attends to itself by the op, to the
state by a small dense product, and both are merged: on each level, only the
first two cells of an aligned chunk see a cell before the chunk, and the state
holds these.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

from fma_kernels import Hierarchy, auto_num_levels, fma1d, merge, pooling
from fma_kernels.backends import native
from fma_kernels.backends.native import block as native_block
from fma_kernels.backends.native import stream

from ...layers import FMAttention1D, rotate
from ...layers.summaries import (AverageSummaries, ConvSummaries,
                                 GroupedConvSummaries, HierarchicalSummaries)
from .blocks import LMBlock
from .chunk import Chunk, grown
from .fused_block import weights_of
from .multipole_plan import Geometry, Plan, plan_of, state_angles, token_angles
from .multipole_state import SLOTS, MultipoleState, held_cells, take_new
from .multipole_sums import add_tokens

# Whose sums ``multipole_sums.py`` knows.
FORMS = (AverageSummaries, ConvSummaries, GroupedConvSummaries,
         HierarchicalSummaries)


def attend(query: torch.Tensor, pair: torch.Tensor,
           bias: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Dense attention that also returns its log-sum-exp.

    Args:
        query (Tensor): ``[B, T, heads, head_dim]``.
        pair (Tensor): Keys and values ``[2, B, S, heads, head_dim]``.
        bias (Tensor): ``[B, T, S]`` in the accumulation dtype; -inf hides.

    Returns:
        tuple[Tensor, Tensor]: ``[B, T, heads, head_dim]`` and ``[B, T,
        heads]``; 0 and -inf where all is hidden.
    """
    key, value = pair.transpose(2, 3)  # [B, heads, S, head_dim]
    query = query.transpose(1, 2) * query.shape[-1]**-.5
    logits = (query @ key.transpose(-2, -1)).to(bias.dtype) + bias[:, None]
    peak = logits.amax(-1, keepdim=True)
    peak = peak.clamp(min=torch.finfo(bias.dtype).min)  # no -inf - -inf
    weights = (logits - peak).exp()
    total = weights.sum(-1, keepdim=True)
    out = (weights / total.clamp(min=1e-30)).to(value.dtype) @ value
    return out.transpose(1, 2), (total.log() + peak)[..., 0].transpose(1, 2)


class Own(NamedTuple):
    """Summaries of a chunk alone, which begins with a leaf cell.

    Attributes:
        tree (Hierarchy): Cells of the chunk.
        packed (Tensor): ``[2, B, M, heads, head_dim]``, keys not rotated.
        whole (int): The highest level on which it may end a cell.
        needed (int): Levels that its own queries see.
    """
    tree: Hierarchy
    packed: torch.Tensor
    whole: int
    needed: int

    def levels(self) -> List[torch.Tensor]:
        """Per level that may end a cell, ``[2, B, cells, rank, heads, D]``."""
        levels = pooling.unpack(self.packed.flatten(0, 1), self.tree)
        return [x.unflatten(0, (2, -1)) for x in levels[:self.whole]]


class MultipoleStream:
    """Streaming form of a causal :class:`FMAttention1D`.

    Args:
        attn (FMAttention1D): The layer.
    """

    def __init__(self, attn: FMAttention1D) -> None:
        self.attn = attn
        if not isinstance(self.forms[0], FORMS):
            raise TypeError(
                f'summaries of type {type(self.forms[0]).__name__} are not '
                'added up token by token; a language model writes with '
                f'{", ".join(form.__name__ for form in FORMS)}')
        limits = [attn.num_levels, self.forms[0].level_limit]
        # Height of a top level that keeps all of its cells.
        limit = min((n for n in limits if n is not None), default=None)
        self.geometry = Geometry(attn.cell_size, attn.rank, attn.mass, limit)
        # Forms with weights for each token on every level.
        self.direct = hasattr(self.forms[0], 'delta')

    @property
    def forms(self) -> Tuple[nn.Module, nn.Module]:
        """Those that the layer has now, of keys and of values."""
        return self.attn.key_summaries, self.attn.value_summaries

    # ------------------------------------------------------------ geometry
    def room(self, start: int) -> Optional[int]:
        """Tokens that one chunk may hold from a position on.

        A chunk must lie in one leaf cell, or begin with a cell that holds
        it: only then are the op's cells those of the whole sequence.

        Args:
            start (int): The position.

        Returns:
            int, optional: None if there is no limit.
        """
        size = self.attn.cell_size
        if start % size:
            return size - start % size
        cells = start // size
        return size * (cells & -cells) if cells else None

    def init(self, batch: int, device: torch.device,
             dtype: torch.dtype) -> MultipoleState:
        """The state before the first token."""
        attn = self.attn
        shape = (attn.rank, attn.num_heads, attn.head_dim)
        wide = torch.promote_types(dtype, torch.float32)

        def zeros(*sizes: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros((2, batch, *sizes), device=device, dtype=dtype)

        return MultipoleState(
            zeros(2 * attn.cell_size, *shape[1:]), zeros(0, SLOTS, *shape),
            zeros(0, *shape),
            zeros(
                self.geometry.limit if self.direct else 1, *shape, dtype=wide))

    # ----------------------------------------------------------- attention
    def __call__(self, x: torch.Tensor, state: MultipoleState,
                 chunk: Chunk) -> Tuple[torch.Tensor, MultipoleState]:
        """Attend from new tokens, and read them.

        Args:
            x (Tensor): ``[B, T, dim]``.
            state (MultipoleState): Before; it is not changed.
            chunk (Chunk): Where the tokens lie.

        Returns:
            tuple[Tensor, MultipoleState]: ``[B, T, dim]`` and the state
            after.
        """
        attn = self.attn
        # Two axes: for a single token, that is a faster product.
        qkv = attn.qkv(x.flatten(0, 1)).to(state.near.dtype)
        qkv = qkv.view(*x.shape[:2], 3, attn.num_heads, attn.head_dim)
        pair = qkv[:, :, 1:].movedim(2, 0)  # keys, not rotated, and values
        own = None
        if not chunk.within(attn.cell_size):
            own = self._summarise(pair, chunk)
        if self._native(qkv):
            options = self._native_options(state, chunk, own)
            out, near, sums = stream.attend(qkv, chunk.begin, chunk.count,
                                            state, self.geometry, **options)
            sums = sums if options['taps'] else None
        else:
            out, near, sums = self._attend(qkv, state, chunk, own)
        if sums is None:
            sums = self._add(pair, state.sums, chunk)
        state = self._read(own, state._replace(near=near, sums=sums), chunk)
        out = attn.proj(out.reshape(-1, attn.dim).to(x.dtype))
        return out.view_as(x), state

    def block(self, block: LMBlock, x: torch.Tensor, state: MultipoleState,
              chunk: Chunk) -> Optional[Tuple[torch.Tensor, MultipoleState]]:
        """All of a block in one native call, if it may be.

        Args:
            block (LMBlock): That of the layer.
            x (Tensor): ``[B, T, dim]``, what the block is given.
            state (MultipoleState): Before; it is not changed.
            chunk (Chunk): Where the tokens lie.

        Returns:
            tuple[Tensor, MultipoleState], optional: What the block gives, and
            the state after; None where its layers must be called.
        """
        if not self._native(x, state.near) or not chunk.within(
                self.attn.cell_size):
            return None
        weights = weights_of(block, x)
        if weights is None:
            return None
        options = self._native_options(state, chunk, None)
        if options['taps'] is None:
            return None
        x, near, sums = native_block.block(x, weights, self.attn.num_heads,
                                           chunk.begin, chunk.count, state,
                                           self.geometry, **options)
        state = state._replace(near=near, sums=sums)
        return x, self._read(None, state, chunk)

    def _native(self, *tensors: torch.Tensor) -> bool:
        """Whether the native kernels attend."""
        return self.attn.backend in ('auto', 'native') and all(
            map(native.usable, tensors))

    def _native_options(self, state: MultipoleState, chunk: Chunk,
                        own: Optional[Own]) -> Dict[str, Any]:
        """Of the native calls; without taps, C does not add the sums."""
        attn, geometry, turns, packed = self.attn, self.geometry, None, None
        if attn.positions:
            name = 'angles', attn.head_dim, attn.rotary_base
            if name not in chunk.plans:
                chunk.plans[name] = token_angles(geometry, chunk, *name[1:])
            cells = tuple(n // attn.cell_size for n in chunk.starts)
            turns = chunk.plans[name], state_angles(geometry, cells,
                                                    state.far.shape[2],
                                                    state.top.shape[2],
                                                    *name[1:])
        if own is not None:
            keys, values = own.packed
            packed = stream.Own(
                self._turn_own(keys, own, chunk), values.contiguous(),
                own.tree.level_starts)
        taps = self._native_taps() if own is None else None
        return dict(angles=turns, own=packed, taps=taps)

    def _native_taps(self) -> Optional[stream.Taps]:
        """Weights of the sums, by form and level; None for matrices."""
        if not self.forms[0].learned:
            return (), ()
        weights = [
            form.delta if self.direct else [form.delta_cell]
            for form in self.forms
        ]
        if weights[0][0].dim() == 4:
            return None
        return [[x.float().contiguous() for x in by_level]
                for by_level in weights]

    def _attend(self, qkv: torch.Tensor, state: MultipoleState, chunk: Chunk,
                own: Optional[Own]) -> Tuple[torch.Tensor, torch.Tensor, None]:
        """Attention by PyTorch and the op.

        Args:
            qkv (Tensor): ``[B, T, 3, heads, head_dim]``, not rotated.
            state (MultipoleState): Before.
            chunk (Chunk): Where the tokens lie.
            own (Own, optional): None for tokens inside one leaf cell.

        Returns:
            tuple: ``[B, T, heads, head_dim]``, ``near`` of the state after,
            and None: no sums.
        """
        value = qkv[:, :, 2]  # [B, T, heads, head_dim]
        # Both in one go, as if the layer had twice the heads.
        both = self._turn(qkv[:, :, :2].flatten(2, 3), chunk.at)
        query, key = both.chunk(2, dim=2)
        plan = plan_of(self.geometry, chunk, state)
        near = take_new(
            torch.stack([key, value]), plan.near_at - chunk.begin[:, None],
            state.near, plan.near_at >= chunk.begin[:, None])
        if own is None:
            seen = self._seen(state._replace(near=near), plan)
            return attend(query, seen, plan.bias)[0], near, None
        out, lse = self._attend_chunk(query, key, value, own, chunk)
        if chunk.start:
            before = attend(query, self._seen(state, plan), plan.bias)
            out, _ = merge([out, before[0]], [lse.to(before[1]), before[1]])
        return out, near, None

    def _turn(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Rotate ``[B, S, heads, head_dim]`` to positions ``[B, S]``."""
        if not self.attn.positions:
            return x
        return rotate(x, at, self.attn.rotary_base)

    def _seen(self, state: MultipoleState, plan: Plan) -> torch.Tensor:
        """Keys and values of the state, ``[2, B, S, heads, head_dim]``."""
        cells = torch.cat([state.far.flatten(2, 4),
                           state.top.flatten(2, 3)],
                          dim=2)
        if not cells.shape[2]:
            return state.near
        cells = torch.stack([self._turn(cells[0], plan.centres), cells[1]])
        return torch.cat([state.near, cells], dim=2)

    def _summarise(self, pair: torch.Tensor, chunk: Chunk) -> Own:
        """Summaries of keys, not rotated, and values ``[2, B, T, ...]``."""
        attn, length = self.attn, chunk.length
        whole = (length // attn.cell_size).bit_length()
        needed = auto_num_levels((length, ), attn.cell_size)
        limit = self.geometry.limit
        if limit is not None:
            whole, needed = min(whole, limit), min(needed, limit)
        tree = Hierarchy((length, ), attn.cell_size, max(whole, needed),
                         attn.rank, True)
        packed = torch.stack(
            [form(x, tree) for form, x in zip(self.forms, pair)])
        return Own(tree, packed, whole, needed)

    def _turn_own(self, keys: torch.Tensor, own: Own,
                  chunk: Chunk) -> torch.Tensor:
        """Packed keys of a chunk, rotated to their centres."""
        attn = self.attn
        if not attn.positions:
            return keys
        at, = attn.summary_positions(own.tree, keys.device, (chunk.start, ))
        return rotate(keys, at[:keys.shape[1]], attn.rotary_base)

    def _attend_chunk(self, query: torch.Tensor, key: torch.Tensor,
                      value: torch.Tensor, own: Own,
                      chunk: Chunk) -> Tuple[torch.Tensor, torch.Tensor]:
        """Attention of a chunk to itself, by the op.

        Args:
            query, key (Tensor): Rotated, ``[B, T, heads, head_dim]``.
            value (Tensor): Likewise.
            own (Own): Its summaries.
            chunk (Chunk): Begins with a leaf cell.

        Returns:
            tuple[Tensor, Tensor]: Output and lse.
        """
        attn = self.attn
        # The op takes no level that the chunk has no need of.
        count = sum(own.tree.level_sizes[:own.needed])
        keys, values = own.packed[:, :, :count]
        return fma1d(
            query,
            key,
            value,
            cell_size=attn.cell_size,
            num_levels=own.needed,
            rank=attn.rank,
            key_summaries=self._turn_own(keys, own, chunk),
            value_summaries=values,
            causal=True,
            mass=attn.mass,
            backend=attn.backend,
            return_lse=True)

    # ------------------------------------------------------------- reading
    def _add(self, pair: torch.Tensor, sums: torch.Tensor,
             chunk: Chunk) -> torch.Tensor:
        """The sums with keys, not rotated, and values ``[2, B, T, ...]``."""
        return torch.stack([
            add_tokens(pair, sums[:, :, level - 1], self.geometry.width(level),
                       self._taps(level), chunk)
            for level in range(1, sums.shape[2] + 1)
        ],
                           dim=2)

    def _read(self, own: Optional[Own], state: MultipoleState,
              chunk: Chunk) -> MultipoleState:
        """End the cells that are complete, and keep them.

        Args:
            own (Own, optional): None for tokens inside one leaf cell.
            state (MultipoleState): Before, but for near and sums, which hold
                the new tokens.
            chunk (Chunk): Where the tokens lie.
        """
        if not chunk.crosses(self.attn.cell_size):
            return state
        ended, sums = [], []
        for level, total in enumerate(state.sums.unbind(2), 1):
            width = self.geometry.width(level)
            ended.append(total / (width // self.attn.rank))
            if chunk.within(width):
                ends = chunk.end // width > chunk.begin // width
                total = total.masked_fill(ends[:, None, None, None], 0)
            sums.append(total)
        state = state._replace(sums=torch.stack(sums, dim=2))
        levels = [] if own is None else own.levels()
        level, new = 1, None
        while chunk.crosses(self.geometry.width(level)):
            if level <= len(levels):
                # Cells that the chunk alone fills; a ragged one is unfinished.
                new = levels[level - 1][:, :, :chunk.length //
                                        self.geometry.width(level)]
            elif level <= len(ended):
                new = ended[level - 1][:, :, None].to(state.near.dtype)
            else:
                new = self._join(new, state, level, chunk)
            state = self._keep(new, state, level, chunk)
            if self.geometry.is_top(level):
                break
            level += 1
        return state

    def _taps(self, level: int) -> Optional[List[torch.Tensor]]:
        """Weights of the tokens of a cell, for keys and for values."""
        if self.direct:
            return [form.delta[level - 1] for form in self.forms]
        if not self.forms[0].learned:
            return None
        return [form.delta_cell for form in self.forms]

    def _join(self, child: torch.Tensor, state: MultipoleState, level: int,
              chunk: Chunk) -> torch.Tensor:
        """Parents whose odd child ``[2, B, 1, ...]`` is finished now."""
        begin = chunk.begin // self.geometry.width(level - 1)  # the odd child
        slot = (begin - 1).clamp(min=0) // 2 % 2
        rows = torch.arange(len(slot), device=slot.device)
        even = state.far[:, rows, level - 2, slot]  # [2, B, rank, heads, D]
        both = torch.cat([even, child[:, :, 0]], dim=2)
        # The 2 rank sub-cells of the children, by parent's sub-cell.
        both = both.unflatten(2, (self.attn.rank, 2))
        if not self.forms[0].learned:
            return both.mean(3).unsqueeze(2)
        mass = torch.ones(2, device=child.device)
        return torch.stack([
            form.step(x, mass, level - 1) for form, x in zip(self.forms, both)
        ]).unsqueeze(2)

    def _keep(self, new: torch.Tensor, state: MultipoleState, level: int,
              chunk: Chunk) -> MultipoleState:
        """Put finished cells ``[2, B, cells, ...]`` into their slots."""
        width = self.geometry.width(level)
        first = (chunk.begin // width)[:, None]
        done = chunk.end // width
        if self.geometry.is_top(level):
            top = grown(state.top, max(chunk.ends) // width)
            cell = torch.arange(top.shape[2], device=done.device)[None]
            take = (cell >= first) & (cell < done[:, None])
            return state._replace(top=take_new(new, cell - first, top, take))
        far = grown(state.far, level)
        cell = held_cells(done)  # [B, 3]
        slots = take_new(new, cell - first, far[:, :, level - 1], cell
                         >= first)
        parts = (far[:, :, :level - 1], slots.unsqueeze(2), far[:, :, level:])
        return state._replace(far=torch.cat(parts, dim=2))
