"""What a chunk of tokens sees of the state, in numbers that layers share."""

from dataclasses import dataclass
from functools import lru_cache
from typing import List, Optional, Tuple

import torch

from ...layers import rotary_table
from ...layers.positions import angle_dtype
from .chunk import Chunk
from .multipole_state import MultipoleState, held_cells


@dataclass(frozen=True)
class Geometry:
    """The cells of a layer; layers with equal ones share their plans.

    Attributes:
        cell_size (int): Tokens of a leaf cell.
        rank (int): Summaries of a cell.
        mass (bool): Weigh a summary by its tokens.
        limit (int, optional): Height of a top level that keeps all of its
            cells; None if levels grow with the text.
    """
    cell_size: int
    rank: int
    mass: bool
    limit: Optional[int]

    def width(self, level: int) -> int:
        """Tokens in a cell of a level, from 1."""
        return self.cell_size << (level - 1)

    def is_top(self, level: int) -> bool:
        """Whether a level keeps all of its cells."""
        return level == self.limit


@dataclass
class Plan:
    """What all layers of one geometry share in one call.

    Attributes:
        bias (Tensor): ``[B, T, S]`` of the state's keys: near, far, top.
        centres (Tensor): ``[B, S - 2 m]``, positions of far and top.
        near_at (Tensor): int64 ``[B, 2 m]``, tokens in the near slots after
            the call.
    """
    bias: torch.Tensor
    centres: torch.Tensor
    near_at: torch.Tensor


def plan_of(geometry: Geometry, chunk: Chunk, state: MultipoleState) -> Plan:
    """The plan of a chunk, made once for all layers of equal geometry."""
    levels, cells = state.far.shape[2], state.top.shape[2]
    name = (geometry, levels, cells)
    if name not in chunk.plans:
        dtype = state.sums.dtype
        near_at, near = _near(geometry, chunk, dtype)
        bias = [near]
        held = _held(geometry, chunk.begin, levels, cells)
        here = chunk.at[:, :, None, None]  # of a query
        for (cell, width), is_top in zip(held, (False, True)):
            own, there = here // width, cell[:, None]
            visible = (there >= 0) & (own - there > 1)
            if is_top:
                visible &= there < (chunk.begin[:, None, None, None] // width)
            else:
                visible &= own // 2 - there // 2 <= 1
            weight = (width // geometry.rank).to(dtype).log()
            weight = weight if geometry.mass else torch.zeros_like(weight)
            part = torch.where(visible, weight, -torch.inf)
            part = part[..., None].expand(*part.shape, geometry.rank)
            bias.append(part.flatten(2))  # [B, T, S]
        centres = _centres(geometry, held)
        chunk.plans[name] = Plan(torch.cat(bias, -1), centres, near_at)
    return chunk.plans[name]


@lru_cache(maxsize=16)
def state_angles(geometry: Geometry, leaf_cells: Tuple[int, ...], levels: int,
                 cells: int, head_dim: int, base: float) -> torch.Tensor:
    """Cosines and sines that turn the far and top keys of a state.

    They are the same for all tokens of a leaf cell.

    Args:
        geometry (Geometry): The cells.
        leaf_cells (tuple[int]): In which each text goes on.
        levels, cells (int): Of far and top.
        head_dim (int): Channels of a head.
        base (float): Of the rotary frequencies.

    Returns:
        Tensor: float32 ``[B, S, 2, head_dim / 2]`` on the CPU.
    """
    begin = torch.tensor(leaf_cells, device='cpu') * geometry.cell_size
    centres = _centres(geometry, _held(geometry, begin, levels, cells))
    return angles(centres, head_dim, base)


def token_angles(geometry: Geometry, chunk: Chunk, head_dim: int,
                 base: float) -> torch.Tensor:
    """Cosines and sines that turn the tokens of a chunk, on the CPU.

    Returns:
        Tensor: float32 ``[B, T, 2, head_dim / 2]``, contiguous.
    """
    if chunk.length > 1:
        return angles(chunk.at, head_dim, base)
    cells = tuple(n // geometry.cell_size for n in chunk.starts)
    inside = [n % geometry.cell_size for n in chunk.starts]
    table = _cell_angles(geometry.cell_size, cells, head_dim, base)
    return torch.stack([row[i] for row, i in zip(table, inside)])[:, None]


@lru_cache(maxsize=16)
def _cell_angles(cell_size: int, cells: Tuple[int, ...], head_dim: int,
                 base: float) -> torch.Tensor:
    """Of all tokens of some leaf cells: ``[B, m, 2, head_dim / 2]``."""
    begin = torch.tensor(cells, device='cpu')[:, None] * cell_size
    inside = torch.arange(cell_size, device='cpu')
    return angles(begin + inside, head_dim, base)


def angles(at: torch.Tensor, head_dim: int, base: float) -> torch.Tensor:
    """Cosines and sines at positions: float32 ``[..., 2, head_dim / 2]``."""
    return torch.stack(rotary_table(at, head_dim, base), -2).float()


def _near(geometry: Geometry, chunk: Chunk,
          dtype: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor]:
    """Tokens in the near slots ``[B, 2 m]``, and their bias."""
    size = geometry.cell_size
    slot = torch.arange(2 * size, device=chunk.at.device)

    def tokens(read: torch.Tensor) -> torch.Tensor:
        last = read[:, None] - 1
        return last - (last - slot) % (2 * size)

    after = tokens(chunk.end)
    # In a leaf cell, tokens see each other through the near slots.
    seen = after if chunk.within(size) else tokens(chunk.begin)
    seen, at = seen[:, None], chunk.at[:, :, None]
    visible = (seen >= 0) & (seen <= at) & (at // size - seen // size <= 1)
    bias = torch.zeros((), dtype=dtype, device=at.device)
    return after, torch.where(visible, bias, -torch.inf)


def _held(geometry: Geometry, begin: torch.Tensor, levels: int,
          cells: int) -> List[Tuple[torch.Tensor, torch.Tensor]]:
    """Cells in the far and top slots of texts, and their widths.

    Args:
        geometry (Geometry): The cells.
        begin (Tensor): int64 ``[B]``, tokens read.
        levels, cells (int): Of far and top.

    Returns:
        list: Of far, cells ``[B, levels, 3]`` and widths ``[levels, 1]``, and
        of top ``[B, 1, cells]`` and ``[1, 1]``; negative where a far slot is
        still empty.
    """
    device = begin.device
    width = torch.tensor([geometry.width(n + 1) for n in range(levels)],
                         dtype=torch.int64,
                         device=device)
    far = held_cells(begin[:, None] // width), width[:, None]
    top = torch.arange(cells, device=device).expand(len(begin), 1, -1)
    width = torch.tensor([[geometry.width(geometry.limit or 1)]],
                         device=device)
    return [far, (top, width)]


def _centres(geometry: Geometry,
             held: List[Tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Centres ``[B, S]`` of the sub-cells of :func:`_held`, in tokens."""
    found = []
    for cell, width in held:
        side = (width // geometry.rank)[..., None]
        part = torch.arange(geometry.rank, device=cell.device)
        start = (cell * width)[..., None] + part * side
        half = (side - 1).to(angle_dtype(cell.device)) / 2
        found.append((start + half).flatten(1))
    return torch.cat(found, -1)
