"""What the baselines have in common: projections in, projection out."""

from typing import Optional, Tuple

import torch
import torch.nn as nn

from ..checks import check_rates, typed
from ..common import head_dim_of
from ..positions import angle_dtype, check_rotary, rotate


class ProjectedAttention(nn.Module):
    """Query, key, value projection, and projection of what they give.

    The weights have the names and shapes that they have in
    :class:`~fma_vision.layers.FMAttention2D`.

    Args:
        dim (int): Channels.
        num_heads (int): Heads; divides ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        attn_drop (float): Dropout on attention weights.
        proj_drop (float): Dropout on the output.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.) -> None:
        super().__init__()
        check_rates(attn_drop=attn_drop, proj_drop=proj_drop)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def dropout_p(self) -> float:
        """float: Dropout on attention weights in the present mode."""
        return self.attn_drop if self.training else 0.

    def project(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """Tokens ``[B, *grid, dim]`` to query, key and value.

        Returns:
            tuple[Tensor]: Three of ``[B, *grid, heads, head_dim]``.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        return qkv.unbind(-3)

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        """Map ``[B, *grid, heads, head_dim]`` to ``[B, *grid, dim]``."""
        return self.proj_drop(self.proj(out.flatten(-2)))


class MapAttention(ProjectedAttention):
    """A :class:`ProjectedAttention` over maps.

    Args:
        dim, num_heads, qkv_bias, attn_drop, proj_drop: As there.
        positions (str, optional): ``'rotary'``, as of
            :class:`~fma_vision.layers.FMAttention2D`, or None.
        rotary_base (float): Base of the rotary angles.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.,
                 positions: Optional[str] = None,
                 rotary_base: float = 100.) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.positions = _check_positions(positions, self.head_dim,
                                          rotary_base, 2)
        self.rotary_base = rotary_base

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate ``[..., H, W, heads, head_dim]`` to its places, if asked."""
        if not self.positions:
            return x
        row, column = (
            torch.arange(side, dtype=angle_dtype(x.device), device=x.device)
            for side in x.shape[-4:-2])
        return rotate(x, (row[:, None], column), self.rotary_base)


class SequenceAttention(ProjectedAttention):
    """A :class:`ProjectedAttention` over sequences.

    Args:
        dim, num_heads, qkv_bias, attn_drop, proj_drop: As there.
        causal (bool): Attend to the left only.
        positions (str, optional): ``'rotary'`` or None.
        rotary_base (float): Base of the rotary angles.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 dim: int,
                 num_heads: int,
                 qkv_bias: bool = True,
                 attn_drop: float = 0.,
                 proj_drop: float = 0.,
                 causal: bool = False,
                 positions: Optional[str] = None,
                 rotary_base: float = 10000.) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.causal = causal
        self.positions = _check_positions(positions, self.head_dim,
                                          rotary_base, 1)
        self.rotary_base = rotary_base

    def turn(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Rotate ``[..., N, heads, head_dim]`` to positions, if asked to.

        Args:
            x (Tensor): Queries or keys.
            at (Tensor): ``[N]``, or what broadcasts to ``x.shape[:-2]``.
        """
        if not self.positions:
            return x
        return rotate(x, at, self.rotary_base)

    def extra_repr(self) -> str:
        return (f'heads={self.num_heads}, causal={self.causal}, '
                f'positions={self.positions!r}')


def _check_positions(positions: Optional[str], head_dim: int, base: float,
                     ndim: int) -> Optional[str]:
    """Return ``positions`` if they are a form that the layer has.

    Raises:
        ValueError: If they are not.
    """
    if positions not in (None, 'rotary'):
        raise ValueError("positions must be None or 'rotary', got "
                         f'{positions!r}')
    if positions:
        check_rotary(head_dim, base, ndim)
    return positions


def check_at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is at least ``least``.

    Raises:
        ValueError: If it is not.
    """
    if value < least:
        raise ValueError(f'{name} must be an int of at least {least}, got '
                         f'{value}')
    return value
