"""Full attention token by token, with every key and value kept."""

from typing import List, MutableMapping, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ...layers import rotate
from .chunk import Chunk, grown


class CacheState(NamedTuple):
    """What one layer keeps.

    Attributes:
        tokens (Tensor): Keys, rotated, and values of all tokens, ``[2, B,
            N, heads, head_dim]``.
    """
    tokens: torch.Tensor

    # Fields whose axis 2 grows with the text, and those of sums.
    growing, wide = ('tokens', ), ()


class Room(NamedTuple):
    """Memory that has space behind the tokens of a state.

    Attributes:
        buffer (Tensor): ``[2, B, more than N, heads, head_dim]``.
        written (list[int]): One number, shared by all states that begin with
            this memory: the tokens that any of them has written. Whoever
            takes it out may go on; threads may try at once.
    """
    buffer: torch.Tensor
    written: List[int]


# Of the tokens of states that a call has returned.
_ROOMS: MutableMapping[torch.Tensor, Room] = WeakTensorKeyDictionary()


def appended(tokens: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``[2, B, N, ...]`` and ``[2, B, T, ...]`` one after the other.

    The first is not copied at every call: where memory has been left behind
    it, and no other text has gone on there, the second is written there. What
    was there before stays as it was.
    """
    size, total = tokens.shape[2], tokens.shape[2] + new.shape[2]
    room = _ROOMS.get(tokens)
    if (room is None or total > room.buffer.shape[2]
            or room.buffer.is_inference() != torch.is_inference_mode_enabled()
            or not _claimed(room, size)):
        shape = *tokens.shape[:2], total + total // 2, *tokens.shape[3:]
        room = Room(tokens.new_empty(shape), [])
        room.buffer[:, :, :size] = tokens
    room.buffer[:, :, size:total] = new
    room.written[:] = [total]
    found = room.buffer[:, :, :total]
    _ROOMS[found] = room
    return found


def _claimed(room: Room, size: int) -> bool:
    try:
        room.written.remove(size)  # one thread only
    except ValueError:
        return False
    return True


class CacheStream:
    """Streaming form of causal full attention.

    Args:
        attn (nn.Module): A :class:`FullAttention1D`, or an
            :class:`FMAttention1D` without levels.
    """

    def __init__(self, attn: nn.Module) -> None:
        self.attn = attn

    def room(self, start: int) -> Optional[int]:
        """Tokens that one chunk may hold: no limit."""
        return None

    def init(self, batch: int, device: torch.device,
             dtype: torch.dtype) -> CacheState:
        """The state before the first token."""
        attn = self.attn
        shape = (2, batch, 0, attn.num_heads, attn.head_dim)
        return CacheState(torch.zeros(shape, device=device, dtype=dtype))

    def __call__(self, x: torch.Tensor, state: CacheState,
                 chunk: Chunk) -> Tuple[torch.Tensor, CacheState]:
        """Attend from new tokens ``[B, T, dim]``, and read them.

        Returns:
            tuple[Tensor, CacheState]: ``[B, T, dim]`` and the state after.
        """
        attn = self.attn
        # Two axes: for a single token, that is a faster product.
        qkv = attn.qkv(x.flatten(0, 1)).view(*x.shape[:2], 3, attn.num_heads,
                                             attn.head_dim)
        query, key, value = qkv.to(state.tokens.dtype).unbind(2)
        if attn.positions:
            query = rotate(query, chunk.at, attn.rotary_base)
            key = rotate(key, chunk.at, attn.rotary_base)
        state = self._read(torch.stack([key, value]), state, chunk)
        mask = None
        size = state.tokens.shape[2]
        if chunk.length > 1 or set(chunk.ends) != {size}:
            at = torch.arange(size, device=x.device)
            # Rows that stand still see their own past; what they yield is
            # not used.
            mask = (at <= chunk.at[:, :, None])[:, None]  # [B, 1, T, N]
        key, value = state.tokens.transpose(2, 3)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key, value, attn_mask=mask)
        out = out.transpose(1, 2).flatten(0, 1).flatten(1)  # [B * T, dim]
        return attn.proj(out.to(x.dtype)).view(x.shape), state

    @staticmethod
    def _read(pair: torch.Tensor, state: CacheState,
              chunk: Chunk) -> CacheState:
        """Append tokens ``[2, B, T, heads, head_dim]``."""
        size = state.tokens.shape[2]
        if set(chunk.starts) == {size} and set(
                chunk.ends) == {size + chunk.length}:
            return CacheState(appended(state.tokens, pair))
        old = grown(state.tokens, max(chunk.ends))
        at = torch.arange(old.shape[2], device=old.device)
        index = at - chunk.begin[:, None]  # [B, N]
        take = (index >= 0) & (at < chunk.end[:, None])
        rows = torch.arange(len(index), device=old.device)[:, None]
        new = pair[:, rows, index.clamp(0, chunk.length - 1)]
        return CacheState(torch.where(take[None, :, :, None, None], new, old))
