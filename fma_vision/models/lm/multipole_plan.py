"""What a chunk of tokens sees of the state, in numbers that layers share."""

from dataclasses import dataclass
from typing import Optional, Tuple

import torch

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
        far, far_at = _far(geometry, chunk, levels, dtype)
        top, top_at = _top(geometry, chunk, cells, dtype)
        bias = torch.cat([near, far, top], -1)
        centres = torch.cat([far_at, top_at], -1)
        chunk.plans[name] = Plan(bias, centres, near_at)
    return chunk.plans[name]


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


def _far(geometry: Geometry, chunk: Chunk, levels: int,
         dtype: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bias ``[B, T, S]`` and centres ``[B, S]`` of the far slots."""
    device = chunk.at.device
    width = torch.tensor([geometry.width(n + 1) for n in range(levels)],
                         dtype=torch.int64).to(device)
    cell = held_cells(chunk.begin[:, None] // width)  # [B, levels, 3]
    here = (chunk.at[:, :, None] // width)[..., None]  # [B, T, levels, 1]
    there = cell[:, None]
    visible = (there >= 0) & (here - there > 1) & (here // 2 - there // 2 <= 1)
    return _summaries(geometry, visible, cell, width[:, None], dtype)


def _top(geometry: Geometry, chunk: Chunk, cells: int,
         dtype: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bias ``[B, T, S]`` and centres ``[B, S]`` of the top level."""
    if not cells:
        batch, length = chunk.at.shape
        bias = torch.zeros((batch, length, 0), device=chunk.at.device)
        return bias.to(dtype), bias[:, 0]
    width = torch.tensor(
        geometry.width(geometry.limit), device=chunk.at.device)
    cell = torch.arange(cells, device=chunk.at.device)
    cell = cell.expand(len(chunk.begin), -1)
    done = (cell < chunk.begin[:, None] // width)[:, None]
    here = (chunk.at // width)[..., None]
    visible = done & (here - cell[:, None] > 1)
    return _summaries(geometry, visible, cell, width, dtype)


def _summaries(geometry: Geometry, visible: torch.Tensor, cell: torch.Tensor,
               width: torch.Tensor,
               dtype: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bias and centres of sub-cells, from those of cells.

    Args:
        visible (Tensor): bool ``[B, T, ...]``.
        cell (Tensor): int64 ``[B, ...]``.
        width (Tensor): int64, broadcasts to ``cell``.
        dtype (torch.dtype): Of the bias.

    Returns:
        tuple[Tensor, Tensor]: ``[B, T, S]`` and ``[B, S]``.
    """
    rank = geometry.rank
    side = width // rank
    weight = side.to(dtype).log() if geometry.mass else side * 0.
    bias = torch.where(visible, weight.to(dtype), -torch.inf)
    bias = bias[..., None].expand(*bias.shape, rank).flatten(2)
    part = torch.arange(rank, device=cell.device)
    start = (cell * width)[..., None] + part * side[..., None]
    half = (side[..., None] - 1).to(angle_dtype(cell.device)) / 2
    centre = start + half
    return bias, centre.flatten(1)
