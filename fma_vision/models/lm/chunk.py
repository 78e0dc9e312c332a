"""Where the tokens of one streaming call lie."""

from typing import Any, Dict, Sequence, Tuple

import torch


class Chunk:
    """Tokens ``[B, T]`` that follow what each sequence has read so far.

    Every sequence has its own position, so that prompts of different lengths
    share a batch. Rows with fewer tokens are filled at their end.

    Args:
        starts (sequence[int]): Tokens read before, per row.
        counts (sequence[int]): Real tokens now, at most ``length`` per row.
        length (int): T.
        device (torch.device): Of the tokens.

    Attributes:
        begin, end, count (Tensor): int64 ``[B]``, positions before and
            after, and the difference.
        at (Tensor): int64 ``[B, T]``, position of each token.
        real (Tensor): bool ``[B, T]``.
        plans (dict): What layers of equal geometry share.
    """

    def __init__(self, starts: Sequence[int], counts: Sequence[int],
                 length: int, device: torch.device) -> None:
        self.starts: Tuple[int, ...] = tuple(starts)
        self.ends = tuple(a + b for a, b in zip(starts, counts))
        self.length = length
        # One transfer for all.
        self.begin, self.end, self.count = torch.tensor(
            [self.starts, self.ends, tuple(counts)], device=device).unbind()
        step = torch.arange(length, device=device)
        self.at = self.begin[:, None] + step
        self.real = self.at < self.end[:, None]
        # Starts of the rows that go on; the others keep their state.
        self.active = {a for a, b in zip(starts, counts) if b}
        self.plans: Dict[Any, Any] = {}

    @property
    def start(self) -> int:
        """The position at which all rows that go on do so.

        Only single tokens may come at different positions.
        """
        start, = self.active
        return start

    def within(self, width: int) -> bool:
        """Whether the tokens of each row lie in one cell of this width."""
        return self.length == 1 or self.start % width + self.length <= width

    def crosses(self, width: int) -> bool:
        """Whether any row ends a cell of this width."""
        return any(b // width > a // width
                   for a, b in zip(self.starts, self.ends))


def grown(x: torch.Tensor, size: int) -> torch.Tensor:
    """``[2, B, S, ...]`` with zeros added up to S = ``size``."""
    missing = size - x.shape[2]
    if missing <= 0:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], 2)
