"""The pyramid of averages, fused: tokens are read once."""
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...geometry import Hierarchy
from ...pooling import packed_mass
from . import configs
from .blocks import token_offset
from .call import mask_arguments, on_device, run, strides, unit_rows
from .plan import level_table, plan

# Channels of one program, over all heads.
CHANNELS = 128
# Rows of channels that a program reads at once.
BLOCK = 16
# Levels that one launch makes from the sums of the level below them.
LEVELS_A_LAUNCH = 4


@triton.jit
def _locate(programs, channels, BLOCK_C: tl.constexpr):
    """Image, program of the image, and channels; those run side by side."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    channel = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // blocks
    return (program // programs).to(tl.int64), program % programs, channel


@triton.jit
def _channel_offset(channel, stride_head, DIM: tl.constexpr):
    return (channel // DIM).to(tl.int64) * stride_head + channel % DIM


@triton.jit
def finest_kernel(x, key_mask, mass, sums, averages, x_batch, x_y, x_x, x_head,
                  mask_batch, mask_y, mask_x, mass_batch, summaries, height,
                  width, columns, count, channels, programs, DIM: tl.constexpr,
                  BLOCK: tl.constexpr, TOKENS: tl.constexpr,
                  BLOCK_C: tl.constexpr, SIDE_Y: tl.constexpr,
                  SIDE_X: tl.constexpr, RANK_Y: tl.constexpr,
                  RANK_X: tl.constexpr, MASKED: tl.constexpr):
    """Level 1: sums (float32 ``[B, count, C]``) and averages of tokens.

    A program takes BLOCK sub-cells and TOKENS of each at a time.
    ``averages`` is the packed pyramid ``[B, M, C]``; ``mass [B or 1, M]``.
    """
    batch, program, channel = _locate(programs, channels, BLOCK_C)
    row = tl.arange(0, BLOCK * TOKENS)
    part = program * BLOCK + row // TOKENS
    PARTS: tl.constexpr = RANK_Y * RANK_X
    cell = part // PARTS
    place = part % PARTS
    y0 = (cell // columns * RANK_Y + place // RANK_X) * SIDE_Y
    x0 = (cell % columns * RANK_X + place % RANK_X) * SIDE_X
    head = x + batch * x_batch + _channel_offset(channel, x_head, DIM)[None, :]
    total = tl.zeros([BLOCK * TOKENS, BLOCK_C], tl.float32)
    for step in range(0, SIDE_Y * SIDE_X, TOKENS):
        token = step + row % TOKENS
        y = y0 + token // SIDE_X
        column = x0 + token % SIDE_X
        valid = (part < count) & (token < SIDE_Y * SIDE_X)
        valid = valid & (y < height) & (column < width)
        if MASKED:
            valid = tl.load(
                key_mask + batch * mask_batch +
                token_offset(y, column, mask_y, mask_x),
                mask=valid,
                other=0) != 0
        total += tl.load(
            head + token_offset(y, column, x_y, x_x)[:, None],
            mask=valid[:, None] & (channel < channels)[None, :],
            other=0.0).to(tl.float32)
    total = tl.sum(tl.reshape(total, [BLOCK, TOKENS, BLOCK_C]), 1)
    part = program * BLOCK + tl.arange(0, BLOCK)
    real = part < count
    stored = real[:, None] & (channel < channels)[None, :]
    tl.store(
        sums + (batch * count + part)[:, None] * channels + channel[None, :],
        total,
        mask=stored)
    tokens = tl.load(mass + batch * mass_batch + part, mask=real, other=1)
    average = total / tl.maximum(tokens, 1).to(tl.float32)[:, None]
    tl.store(
        averages + (batch * summaries + part)[:, None] * channels +
        channel[None, :],
        average.to(averages.dtype.element_ty),
        mask=stored)


@triton.jit
def coarser_kernel(sums, mass, levels, next_sums, averages, mass_batch,
                   summaries, first_level, last_level, source_columns,
                   source_rows, source_count, next_count, channels, programs,
                   BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
                   NDIM: tl.constexpr, RANK: tl.constexpr,
                   PARTS: tl.constexpr):
    """Levels ``first_level`` to ``last_level`` from the sums of one below.

    A program makes one summary of one level; the sums of the last level are
    kept for the next call. A sub-cell of a level ``k`` above the source is
    ``2 ** k`` sub-cells of it a side.
    """
    batch, program, channel = _locate(programs, channels, BLOCK_C)
    number = tl.load(levels + first_level * 3) + program
    level = tl.cast(first_level, tl.int32)
    for other in range(first_level + 1, last_level + 1):
        level += (number >= tl.load(levels + other * 3)).to(tl.int32)
    part = number - tl.load(levels + level * 3)
    columns = tl.load(levels + level * 3 + 2)
    cell = part // PARTS
    place = part % PARTS
    span = 1 << (level - first_level + 1)
    # Coordinates on the lattice of sub-cells of the source level.
    x0 = (cell % columns * RANK + place % RANK) * span
    y0 = 0
    steps = span
    if NDIM == 2:
        y0 = (cell // columns * RANK + place // RANK) * span
        steps = span * span
    total = tl.zeros([BLOCK_C], tl.float32)
    for step in range(0, steps, BLOCK):
        below = step + tl.arange(0, BLOCK)
        x = x0 + below % span
        row = below * 0
        within = x % RANK
        if NDIM == 2:
            y = y0 + below // span
            row = y // RANK
            within += y % RANK * RANK
        column = x // RANK
        source = (row * source_columns + column) * PARTS + within
        valid = (below < steps) & (row < source_rows)
        valid = valid & (column < source_columns)
        found = tl.load(
            sums + (batch * source_count + source)[:, None] * channels +
            channel[None, :],
            mask=valid[:, None] & (channel < channels)[None, :],
            other=0.0)
        total += tl.sum(found, 0)
    if level == last_level:
        tl.store(
            next_sums + (batch * next_count + part) * channels + channel,
            total,
            mask=channel < channels)
    tokens = tl.load(mass + batch * mass_batch + number)
    average = total / tl.maximum(tokens, 1).to(tl.float32)
    tl.store(
        averages + (batch * summaries + number) * channels + channel,
        average.to(averages.dtype.element_ty),
        mask=channel < channels)


@triton.jit
def spread_kernel(grad, key_mask, mass, levels, out, mask_batch, mask_y,
                  mask_x, mass_batch, summaries, height, width, num_levels,
                  channels, programs, BLOCK: tl.constexpr,
                  BLOCK_C: tl.constexpr, NDIM: tl.constexpr,
                  SIDE: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr,
                  MASKED: tl.constexpr, ADD: tl.constexpr):
    """The backward pass: each token gathers from the cells that hold it.

    ``grad [B, M, C]`` and ``out [B, H * W, C]`` are contiguous; with ``ADD``
    the result is added to what ``out`` holds.
    """
    batch, program, channel = _locate(programs, channels, BLOCK_C)
    token = (program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.cast(height, tl.int64) * width
    inside = token < tokens
    y = (token // width).to(tl.int32)
    x = (token % width).to(tl.int32)
    real = inside
    if MASKED:
        real = tl.load(
            key_mask + batch * mask_batch + token_offset(y, x, mask_y, mask_x),
            mask=inside,
            other=0) != 0
    # Coordinates on the lattice of sub-cells, level by level.
    sub_y = y // SIDE
    sub_x = x // SIDE
    total = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for level in range(num_levels):
        columns = tl.load(levels + level * 3 + 2)
        number = sub_x // RANK
        part = sub_x % RANK
        if NDIM == 2:
            number += sub_y // RANK * columns
            part += sub_y % RANK * RANK
        number = tl.load(levels + level * 3) + number * PARTS + part
        count = tl.load(mass + batch * mass_batch + number, mask=real, other=1)
        found = tl.load(
            grad + (batch * summaries + number)[:, None] * channels +
            channel[None, :],
            mask=real[:, None] & (channel < channels)[None, :],
            other=0.0)
        # A real token's sub-cell holds at least that token.
        total += found.to(tl.float32) / count.to(tl.float32)[:, None]
        sub_y = sub_y >> 1
        sub_x = sub_x >> 1
    place = (batch * tokens + token)[:, None] * channels + channel[None, :]
    stored = inside[:, None] & (channel < channels)[None, :]
    if ADD:
        total += tl.load(out + place, mask=stored, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=stored)


def _channels(shape: torch.Size) -> Tuple[int, int, int]:
    """Channels over all heads, those of a block, and blocks."""
    channels = shape[-2] * shape[-1]
    block = min(triton.next_power_of_2(channels), CHANNELS)
    return channels, block, -(-channels // block)


def pool(x: Tensor, key_mask: Optional[Tensor],
         hierarchy: Hierarchy) -> Tensor:
    """Averages over real tokens, packed ``[B, M, heads, D]``.

    ``x``: ``[B, *grid, heads, D]``; ``key_mask``: bool ``[B, *grid]``.
    """
    x, p = unit_rows(x), plan(hierarchy)
    mass = packed_mass(hierarchy, key_mask, x.device)
    batch, sizes = x.shape[0], hierarchy.level_sizes
    channels, block_c, blocks = _channels(x.shape)
    averages = torch.empty((batch, sum(sizes), *x.shape[-2:]),
                           dtype=x.dtype,
                           device=x.device)

    def sums_of(level: int) -> Tensor:
        """Room for float32 ``[B, summaries of the level, C]``."""
        return torch.empty((batch, sizes[level], channels),
                           dtype=torch.float32,
                           device=x.device)

    shared = dict(
        mass=mass,
        averages=averages,
        mass_batch=mass.stride(0) if mass.shape[0] > 1 else 0,
        summaries=sum(sizes),
        channels=channels)
    grids = [(1, *grid)[-2:] for grid in hierarchy.grids]
    side, two = p.cell // p.rank, p.ndim == 2
    sums = sums_of(0)
    with on_device(x):
        # Wide loads keep the memory busy: many tokens of few sub-cells.
        tokens = min(triton.next_power_of_2(side**p.ndim), BLOCK)
        programs = -(-sizes[0] // (BLOCK // tokens))
        run(
            finest_kernel, batch * programs * blocks,
            dict(
                BLOCK=BLOCK // tokens,
                TOKENS=tokens,
                BLOCK_C=block_c,
                num_warps=4,
                maxnreg=configs.FEW_REGISTERS),
            dict(
                x=x,
                sums=sums,
                **strides('x', x),
                **mask_arguments(key_mask, spare=mass),
                **shared,
                height=p.height,
                width=p.width,
                columns=grids[0][1],
                count=sizes[0],
                programs=programs,
                DIM=x.shape[-1],
                SIDE_Y=side if two else 1,
                SIDE_X=side,
                RANK_Y=p.rank if two else 1,
                RANK_X=p.rank))
        source, top = 0, hierarchy.num_levels - 1
        while source < top:
            last = min(source + LEVELS_A_LAUNCH, top)
            programs = sum(sizes[source + 1:last + 1])
            next_sums = sums_of(last)
            run(
                coarser_kernel, batch * programs * blocks,
                dict(
                    BLOCK=BLOCK,
                    BLOCK_C=block_c,
                    num_warps=4,
                    maxnreg=configs.FEW_REGISTERS),
                dict(
                    sums=sums,
                    next_sums=next_sums,
                    levels=level_table(hierarchy, x.device),
                    **shared,
                    first_level=source + 1,
                    last_level=last,
                    source_columns=grids[source][1],
                    source_rows=grids[source][0],
                    source_count=sizes[source],
                    next_count=sizes[last],
                    programs=programs,
                    NDIM=p.ndim,
                    RANK=p.rank,
                    PARTS=p.parts))
            source, sums = last, next_sums
    return averages


def pool_backward(grad: Tensor,
                  key_mask: Optional[Tensor],
                  hierarchy: Hierarchy,
                  total: Optional[Tensor] = None) -> Tensor:
    """Gradient of the tokens of :func:`pool`; 0 where masked.

    Added to ``total [B, *grid, heads, D]``, contiguous, where it is given.
    """
    grad, p = grad.contiguous(), plan(hierarchy)
    mass = packed_mass(hierarchy, key_mask, grad.device)
    shape = grad.shape[:1] + hierarchy.shape + grad.shape[-2:]
    channels, block_c, blocks = _channels(shape)
    out = total
    if total is None:
        out = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    programs = -(-hierarchy.num_tokens // BLOCK)
    with on_device(grad):
        run(
            spread_kernel, shape[0] * programs * blocks,
            dict(
                BLOCK=BLOCK,
                BLOCK_C=block_c,
                num_warps=4,
                maxnreg=configs.FEW_REGISTERS),
            dict(
                grad=grad,
                mass=mass,
                levels=level_table(hierarchy, grad.device),
                out=out,
                **mask_arguments(key_mask, spare=mass),
                mass_batch=mass.stride(0) if mass.shape[0] > 1 else 0,
                summaries=hierarchy.num_summaries,
                height=p.height,
                width=p.width,
                num_levels=hierarchy.num_levels,
                channels=channels,
                programs=programs,
                NDIM=p.ndim,
                SIDE=p.cell // p.rank,
                RANK=p.rank,
                PARTS=p.parts,
                ADD=total is not None))
    return out
