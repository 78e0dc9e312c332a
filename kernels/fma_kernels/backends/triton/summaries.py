"""Gradients of summaries: partial sums per range of queries, then added.

The queries of a cell of level l + 1 share one list of level-l summaries, the
window of 6 cells a side without its middle. A program takes a part of those
queries and all (a block) of that list, and writes its sums once; a second
kernel adds, for each summary, the sums of the parents around its own. The
order of all additions is fixed.
"""
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import List, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...geometry import Hierarchy
from . import configs
from .blocks import (key_slopes, load_rows, load_summaries, local_offset,
                     store_rows, token_offset)
from .call import Call, run, strides, wide
from .dropout import key_state, row_state
from .geometry import (child_bit, far_bits, is_far, level_of, summary_at,
                       top_summaries, window_entry, window_length,
                       window_place)
from .plan import CHUNK, plan

# Parts of the queries of a top level that lists its whole grid.
TOP_CHUNKS = 16
# Summaries that one program adds up.
GATHER_BLOCK = 16


@triton.jit
def summary_kernel(
        query, key_summaries, value_summaries, bias, levels, table, seed,
        logsum, grad_out, delta, partial_key, partial_value, q_batch, q_y, q_x,
        q_head, g_batch, g_y, g_x, g_head, bias_batch, summaries, slots,
        programs, chunk_size, height, width, heads, num_levels, scale,
        threshold, keep_scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NDIM: tl.constexpr,
        CELL: tl.constexpr, PARTS: tl.constexpr, CAUSAL: tl.constexpr,
        TOP: tl.constexpr, WIDE: tl.constexpr, DROPOUT: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Partial sums over a chunk of queries.

    A row of ``table`` (int64 ``[levels, 6]``) holds a level's first program,
    first slot, chunks of a range, blocks of a list, columns of ranges and
    side of a range in tokens. With TOP there is one row: the list is the
    whole grid of the last level and the range is all queries. ``partial_*``
    are float32 ``[B, heads, slots, D]``.
    """
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    batch = (program // heads // programs).to(tl.int64)
    program = program // heads % programs
    tokens = tl.cast(height, tl.int64) * width
    level = 0
    if not TOP:
        level = level_of(program, table, num_levels, 6)
    row = table + level * 6
    program -= tl.load(row).to(tl.int32)
    chunks = tl.load(row + 2).to(tl.int32)
    blocks = tl.load(row + 3).to(tl.int32)
    columns = tl.load(row + 4).to(tl.int32)
    side = tl.load(row + 5).to(tl.int32)
    block = program % blocks
    chunk = program // blocks % chunks
    cell = program // blocks // chunks
    range_y = cell // columns
    range_x = cell % columns

    entry = block * BLOCK_N + tl.arange(0, BLOCK_N)
    if TOP:
        found, cell_y, cell_x = top_summaries(entry, num_levels - 1, levels,
                                              PARTS)
        listed = tl.load(levels + num_levels * 3 -
                         2) * tl.load(levels + num_levels * 3 - 1) * PARTS
        seen_by = entry
    else:
        listed = window_length(NDIM, CAUSAL) * PARTS
        cell_y, cell_x = window_place(entry // PARTS, NDIM)
        seen_by = far_bits(cell_y, cell_x, NDIM)
        cell_x += 2 * range_x - 2
        if NDIM == 2:
            cell_y += 2 * range_y - 2
        found = summary_at(levels, entry * 0 + level, cell_y, cell_x,
                           entry % PARTS, entry < listed, PARTS)
    far_head = (batch * summaries * heads + head) * DIM
    k, v, weight = load_summaries(key_summaries + far_head,
                                  value_summaries + far_head,
                                  bias + batch * bias_batch, found,
                                  heads * DIM, DIM, BLOCK_D)
    hashed = tl.zeros([1], tl.uint32)
    unhashed = tl.zeros([1], tl.uint32)
    if DROPOUT:
        number = tl.load(seed)
        hashed = key_state(tokens + found)
    total_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    # The range as a box of tokens: cells of side CELL << up, row by row. Rows
    # off the grid are skipped, columns are masked.
    up = level + 1
    first_y = range_y * side
    first_x = range_x * side
    rows = 1
    if NDIM == 2:
        rows = tl.minimum(side, height - first_y)
    stop = rows * side
    if TOP:
        stop = height * width
    stop = tl.minimum((chunk + 1) * chunk_size, stop)
    query_range = (
        query + batch * q_batch + head * q_head +
        token_offset(first_y, first_x, q_y, q_x))
    grad_range = (
        grad_out + batch * g_batch + head * g_head +
        token_offset(first_y, first_x, g_y, g_x))
    first_row = (batch * tokens +
                 token_offset(first_y, first_x, width, 1)) * heads + head
    for start in range(chunk * chunk_size, stop, BLOCK_M):
        place = start + tl.arange(0, BLOCK_M)
        if TOP:
            y = place // width
            x = place % width
        else:
            # Unsigned: a division without a case for the sign.
            y = ((place.to(tl.uint32) >> up) // CELL).to(tl.int32)
            x = place - y * side
        # A query off the grid is read as zeros: it adds nothing.
        asks = (place < stop) & (first_x + x < width)
        q = load_rows(query_range + local_offset(y, x, q_y, q_x, WIDE), asks,
                      DIM, BLOCK_D, True)
        grad = load_rows(grad_range + local_offset(y, x, g_y, g_x, WIDE), asks,
                         DIM, BLOCK_D, True)
        token = first_row + local_offset(y, x, width * heads, heads, WIDE)
        row_lse = tl.load(logsum + token, mask=asks, other=0.0)
        row_delta = tl.load(delta + token, mask=asks, other=0.0)
        if TOP:
            seen = is_far(cell_y[:, None], cell_x[:, None],
                          (y // side)[None, :], (x // side)[None, :], CAUSAL)
        else:
            bits = child_bit(y, x, side // 2)
            seen = (seen_by[:, None] & bits[None, :]) > 0
        state = unhashed
        if DROPOUT:
            state = row_state(number, (batch * heads + head) * tokens +
                              token_offset(first_y + y, first_x + x, width, 1))
        total_k, total_v = key_slopes(k, v, weight, seen, q, grad, row_lse,
                                      row_delta, hashed, state, threshold,
                                      keep_scale, scale, total_k, total_v,
                                      True, True, DROPOUT, PRECISION, UPCAST)

    slot = tl.load(row +
                   1) + (cell * chunks + chunk).to(tl.int64) * listed + entry
    place = ((batch * heads + head) * slots + slot) * DIM
    store_rows(partial_key + place, total_k * (scale * 0.6931471805599453),
               entry < listed, DIM, BLOCK_D)
    store_rows(partial_value + place, total_v, entry < listed, DIM, BLOCK_D)


@triton.jit
def gather_kernel(partial_key, partial_value, levels, table, blocks_table,
                  grad_key, grad_value, summaries, slots, programs, heads,
                  num_levels, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
                  BLOCK: tl.constexpr, NDIM: tl.constexpr, PARTS: tl.constexpr,
                  CAUSAL: tl.constexpr):
    """Adds the partial sums of every summary of the listed levels.

    A program takes ``BLOCK`` summaries of one level; ``blocks_table``
    (int64 ``[levels]``) holds each level's first program.
    """
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    batch = (program // heads // programs).to(tl.int64)
    program = program // heads % programs
    level = level_of(program, blocks_table, num_levels, 1)
    row = table + level * 6
    chunks = tl.load(row + 2).to(tl.int32)
    columns = tl.load(row + 4).to(tl.int32)
    start = tl.load(levels + level * 3)
    grid_y = tl.load(levels + level * 3 + 1)
    grid_x = tl.load(levels + level * 3 + 2)
    LISTED: tl.constexpr = window_length(NDIM, CAUSAL) * PARTS

    number = (program - tl.load(blocks_table + level).to(
        tl.int32)) * BLOCK + tl.arange(0, BLOCK)
    real = number < grid_y * grid_x * PARTS
    cell = number // PARTS
    y = cell // grid_x
    x = cell % grid_x
    total_k = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(9 if NDIM == 2 else 3):
        # A parent near this cell's own; its window begins 2 before it.
        parent_y = (y >> 1) + (step // 3 - 1 if NDIM == 2 else 0)
        parent_x = (x >> 1) + step % 3 - 1
        own = (parent_y == y >> 1) & (parent_x == x >> 1)
        inside = (parent_y >= 0) & (parent_y * 2 < grid_y)
        inside = inside & (parent_x >= 0) & (parent_x * 2 < grid_x)
        if CAUSAL:
            inside = inside & (parent_x > x >> 1)
        entry = window_entry(y - 2 * parent_y + 2, x - 2 * parent_x + 2,
                             NDIM) * PARTS + number % PARTS
        valid = real & inside & (own == 0)
        for chunk in range(chunks):
            place = (parent_y * columns + parent_x) * chunks + chunk
            slot = tl.load(row + 1) + place.to(tl.int64) * LISTED + entry
            place = ((batch * heads + head) * slots + slot) * DIM
            total_k += load_rows(partial_key + place, valid, DIM, BLOCK_D,
                                 True)
            total_v += load_rows(partial_value + place, valid, DIM, BLOCK_D,
                                 True)
    place = ((batch * summaries + start + number) * heads + head) * DIM
    store_rows(grad_key + place, total_k, real, DIM, BLOCK_D)
    store_rows(grad_value + place, total_v, real, DIM, BLOCK_D)


@dataclass(frozen=True)
class Ranges:
    """How the queries of each listed level are cut.

    Attributes:
        table: int64 ``[levels, 6]``, as :func:`summary_kernel` reads it.
        chunk: queries of a program.
        programs: programs of an image and head.
        slots: rows of partial sums of an image and head.
    """
    table: Tensor
    chunk: int
    programs: int
    slots: int


def _table(rows: List[Tuple[int, ...]], listed: List[int], chunk: int,
           device: torch.device) -> Ranges:
    """From (ranges, columns, side, tokens, blocks) and entries per level."""
    table, programs, slots = [], 0, 0
    for (ranges, columns, side, tokens, blocks), entries in zip(rows, listed):
        chunks = -(-tokens // chunk)
        table.append((programs, slots, chunks, blocks, columns, side))
        programs += ranges * chunks * blocks
        slots += ranges * chunks * entries
    return Ranges(
        torch.tensor(table, dtype=torch.int64, device=device), chunk, programs,
        slots)


@lru_cache(maxsize=256)
def ranges_of_levels(hierarchy: Hierarchy, block: int,
                     device: torch.device) -> Ranges:
    """The listed levels: queries of a parent, its window without itself."""
    p = plan(hierarchy)
    entries = p.parts * (2 if p.causal else 32 if p.ndim == 2 else 4)
    rows = []
    for grid, width in list(zip(hierarchy.grids, hierarchy.widths))[:p.listed]:
        parents = [-(-size // 2) for size in grid]
        # As the kernel walks: whole rows of a range, off the grid or not.
        rows_of_range = [min(2 * width, size) for size in hierarchy.shape[:-1]]
        tokens = prod(rows_of_range) * 2 * width
        rows.append((prod(parents), parents[-1], 2 * width, tokens,
                     -(-entries // block)))
    return _table(rows, [entries] * len(rows), CHUNK, device)


@lru_cache(maxsize=256)
def range_of_top(hierarchy: Hierarchy, block: int,
                 device: torch.device) -> Ranges:
    """A top level that lists its whole grid: all queries."""
    entries = hierarchy.level_sizes[-1]
    row = (1, 1, hierarchy.widths[-1], hierarchy.num_tokens,
           -(-entries // block))
    # The list may be long: few chunks bound the partial sums.
    chunk = max(CHUNK, -(-hierarchy.num_tokens // TOP_CHUNKS))
    return _table([row], [entries], chunk, device)


@lru_cache(maxsize=256)
def gather_programs(hierarchy: Hierarchy,
                    device: torch.device) -> Tuple[Tensor, int]:
    """First program of each listed level, int64 ``[levels]``, and all."""
    first, total = [], 0
    for size in hierarchy.level_sizes[:plan(hierarchy).listed]:
        first.append(total)
        total += -(-size // GATHER_BLOCK)
    return torch.tensor(first, dtype=torch.int64, device=device), total


def far_slopes(call: Call, query: Tensor, key_summaries: Tensor,
               value_summaries: Tensor, logsum: Tensor, grad_out: Tensor,
               delta: Tensor, grad_key: Tensor, grad_value: Tensor) -> None:
    """Fills the gradients of packed summaries, ``[B, M, heads, D]``."""
    p, hierarchy, device = call.plan, call.hierarchy, query.device
    config = configs.summary_config(call.work)
    rows = call.batch * call.heads
    arguments = dict(
        query=query,
        key_summaries=key_summaries,
        value_summaries=value_summaries,
        logsum=logsum,
        grad_out=grad_out,
        delta=delta,
        **strides('q', query),
        **strides('g', grad_out),
        **call.shape,
        **call.far,
        **call.numbers,
        WIDE=wide((p.height, p.width), query, grad_out, logsum[..., None]))

    def partial_sums(ranges: Ranges, levels: int, top: bool) -> Tensor:
        """float32 ``[2, B, heads, slots, D]``: of keys and of values."""
        found = torch.empty(
            (2, call.batch, call.heads, ranges.slots, call.dim),
            dtype=torch.float32,
            device=device)
        run(
            summary_kernel, rows * ranges.programs, config,
            dict(
                partial_key=found[0],
                partial_value=found[1],
                table=ranges.table,
                slots=ranges.slots,
                programs=ranges.programs,
                chunk_size=ranges.chunk,
                num_levels=levels,
                TOP=top,
                **arguments))
        return found

    if p.listed:
        ranges = ranges_of_levels(hierarchy, config['BLOCK_N'], device)
        partial = partial_sums(ranges, p.listed, False)
        first, programs = gather_programs(hierarchy, device)
        run(
            gather_kernel, rows * programs,
            dict(
                BLOCK=GATHER_BLOCK, num_warps=4,
                maxnreg=configs.FEW_REGISTERS),
            dict(
                partial_key=partial[0],
                partial_value=partial[1],
                levels=call.far['levels'],
                table=ranges.table,
                blocks_table=first,
                grad_key=grad_key,
                grad_value=grad_value,
                summaries=hierarchy.num_summaries,
                slots=ranges.slots,
                programs=programs,
                heads=call.heads,
                num_levels=p.listed,
                DIM=call.dim,
                BLOCK_D=call.shape['BLOCK_D'],
                NDIM=p.ndim,
                PARTS=p.parts,
                CAUSAL=p.causal))
        del partial
    if p.top:
        ranges = range_of_top(hierarchy, config['BLOCK_N'], device)
        partial = partial_sums(ranges, hierarchy.num_levels, True)
        # [2, B, heads, chunks, entries, D] -> [2, B, entries, heads, D]
        total = partial.unflatten(3, (-1, hierarchy.level_sizes[-1])).sum(3)
        total = total.transpose(2, 3)
        start = hierarchy.level_starts[-1]
        grad_key[:, start:] = total[0]
        grad_value[:, start:] = total[1]
