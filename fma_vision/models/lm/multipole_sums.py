"""The running sums of unfinished cells."""

from typing import Optional, Sequence

import torch

from .chunk import Chunk


def add_tokens(pair: torch.Tensor, total: torch.Tensor, width: int,
               taps: Optional[Sequence[torch.Tensor]],
               chunk: Chunk) -> torch.Tensor:
    """Add tokens to the unfinished cell of a level.

    Args:
        pair (Tensor): Keys and values ``[2, B, T, heads, head_dim]``.
        total (Tensor): ``[2, B, rank, heads, head_dim]``, the sums before.
        width (int): Tokens in a cell.
        taps (sequence[Tensor], optional): For keys and values, what is added
            to the weights of a mean: ``[rank, width, head_dim]`` or, with a
            matrix per token, ``[rank, width, head_dim out, head_dim in]``.
        chunk (Chunk): Where the tokens lie.

    Returns:
        Tensor: The sums after; of the cell that the tokens lie in, also where
        they end it, else of the unfinished cell that they leave.
    """
    rank = total.shape[2]
    side = width // rank
    at, real = chunk.at, chunk.real
    inside = chunk.within(width)
    if not inside:
        # Only the tokens after the last whole cell are left over; the sums
        # of rows that go on are 0, since the chunk begins with a cell.
        first = chunk.end // width * width - chunk.begin
        index = first[:, None] + torch.arange(width, device=at.device)
        rows = torch.arange(len(index), device=at.device)[:, None]
        last = chunk.length - 1
        real = (index >= 0) & (index <= last)
        index = index.clamp(0, last)
        real = real & chunk.real[rows, index]
        at, pair = at[rows, index], pair[:, rows, index]
    pair = pair.to(total.dtype) * real[..., None, None]
    part = at % width
    own = torch.arange(rank, device=at.device)
    own = (part[..., None] // side == own).to(total.dtype)
    total = total + torch.einsum('bta,kbthd->kbahd', own, pair)
    if taps is not None:
        total = total + torch.stack([
            _weigh(delta.to(total.dtype), x, part, inside, chunk)
            for delta, x in zip(taps, pair)
        ])
    return total


def _weigh(delta: torch.Tensor, x: torch.Tensor, part: torch.Tensor,
           inside: bool, chunk: Chunk) -> torch.Tensor:
    """Weighted sums ``[B, rank, heads, head_dim]`` of tokens.

    Args:
        delta (Tensor): ``[rank, width, head_dim]`` or, with a matrix per
            token, ``[rank, width, head_dim out, head_dim in]``.
        x (Tensor): ``[B, T, heads, head_dim]``, 0 where not real.
        part (Tensor): int64 ``[B, T]``, places in the cell.
        inside (bool): Whether the tokens lie in one cell.
        chunk (Chunk): Where they lie.
    """
    mixed = 'oi' if delta.ndim == 4 else 'd'
    out, inner = mixed[0], mixed[-1]
    if len(chunk.active) == 1 or not inside:
        # The same places in all rows: a view instead of a copy per row.
        first = chunk.start % delta.shape[1] if inside else 0
        delta = delta[:, first:first + x.shape[1]]
        return torch.einsum(f'at{mixed},bth{inner}->bah{out}', delta, x)
    return torch.einsum(f'abt{mixed},bth{inner}->bah{out}', delta[:, part], x)
