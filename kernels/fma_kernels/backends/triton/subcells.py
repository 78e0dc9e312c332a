"""Pooled queries: the sub-cells of all levels ask their own lists, at once.

A program owns a block of a tile: a few cells of one level, whose parents lie
wholly in it. What it sees lies in a box around the tile, on the same level;
coordinates decide. The relation is mutual, so the gradients of keys walk the
same boxes.
"""
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...geometry import Hierarchy
from . import configs
from .blocks import key_slopes, load_rows, load_summaries, store_rows
from .call import Call, run
from .dropout import key_state, row_state
from .geometry import level_of
from .queries import step

# A tile has at least so many sub-cells: what a matrix unit takes.
LEAST_TILE = 16


@triton.jit
def _tile_of(program, heads, tiles, table, num_levels, TILE_Y: tl.constexpr,
             TILE_X: tl.constexpr, BLOCKS: tl.constexpr):
    """Program number -> image, head, level, the tile's first cell, block."""
    head = (program % heads).to(tl.int64)
    program = program // heads
    block = program % BLOCKS
    program = program // BLOCKS
    batch = (program // tiles).to(tl.int64)
    tile = program % tiles
    level = level_of(tile, table, num_levels, 2)
    tile -= tl.load(table + level * 2)
    columns = tl.load(table + level * 2 + 1)
    return (batch, head, level, tile // columns * TILE_Y,
            tile % columns * TILE_X, block)


@triton.jit
def _box_of(cell_y, cell_x, rows, columns, whole, TILE_Y: tl.constexpr,
            TILE_X: tl.constexpr):
    """First cell, rows and columns of what a tile may see.

    One parent around the tile, which begins at a parent; ``whole``: all.
    """
    y = tl.maximum(cell_y - 2, 0)
    x = tl.maximum(cell_x - 2, 0)
    stop_y = tl.minimum(cell_y + TILE_Y + 2, rows)
    stop_x = tl.minimum(cell_x + TILE_X + 2, columns)
    y = tl.where(whole, 0, y)
    x = tl.where(whole, 0, x)
    return (y, x, tl.where(whole, rows, stop_y) - y,
            tl.where(whole, columns, stop_x) - x)


@triton.jit
def _subcells(place, first_y, first_x, across, start, columns,
              PARTS: tl.constexpr):
    """Places in a box, cell by cell -> cell coordinates, packed number."""
    cell = place // PARTS
    y = first_y + cell // across
    x = first_x + cell % across
    return y, x, start + (y * columns + x) * PARTS + place % PARTS


@triton.jit
def _sees(y, x, other_y, other_x, whole):
    """Far cells of near parents; ``whole``: all that are far."""
    far = (tl.abs(y - other_y) > 1) | (tl.abs(x - other_x) > 1)
    kin = tl.abs((y >> 1) - (other_y >> 1)) <= 1
    kin = kin & (tl.abs((x >> 1) - (other_x >> 1)) <= 1)
    return far & (kin | whole)


@triton.jit
def _asker(y, x, part, level, width, NDIM: tl.constexpr, SIDE: tl.constexpr,
           RANK: tl.constexpr):
    """The first token of a sub-cell, int64: dropout asks for it."""
    token = ((x * RANK + part % RANK) * SIDE).to(tl.int64) << level
    if NDIM == 2:
        row = ((y * RANK + part // RANK) * SIDE).to(tl.int64) << level
        token += row * width
    return token


@triton.jit
def subcell_kernel(query, key, value, bias, levels, table, seed, out, lse,
                   grad_out, logsum, delta, grad_query, bias_batch, summaries,
                   tiles, num_levels, height, width, heads, scale, threshold,
                   keep_scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   NDIM: tl.constexpr, SIDE: tl.constexpr, RANK: tl.constexpr,
                   PARTS: tl.constexpr, TILE_Y: tl.constexpr,
                   TILE_X: tl.constexpr, DROPOUT: tl.constexpr,
                   BACKWARD: tl.constexpr, PRECISION: tl.constexpr):
    """A block of pooled queries of one tile and head.

    Forward writes ``out`` and ``lse`` of each sub-cell's own list, float32;
    BACKWARD reads ``grad_out``, ``logsum`` and ``delta`` of all that a
    sub-cell sees, and writes ``grad_query``. All are packed ``[B, M, heads,
    D]`` (or without ``D``) and contiguous; ``table`` is that of
    :class:`Tiles`. Operands are float32 whatever the inputs: gradients are
    sums over many tokens, too large for float16.
    """
    BLOCKS: tl.constexpr = (TILE_Y * TILE_X * PARTS + BLOCK_M - 1) // BLOCK_M
    batch, head, level, tile_y, tile_x, block = _tile_of(
        tl.program_id(0), heads, tiles, table, num_levels, TILE_Y, TILE_X,
        BLOCKS)
    whole = level == num_levels - 1
    start = tl.load(levels + level * 3)
    rows = tl.load(levels + level * 3 + 1)
    columns = tl.load(levels + level * 3 + 2)
    far_head = (batch * summaries * heads + head) * DIM
    stride = heads * DIM
    bias += batch * bias_batch

    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    y, x, number = _subcells(place, tile_y, tile_x, TILE_X, start, columns,
                             PARTS)
    valid = (place < TILE_Y * TILE_X * PARTS) & (y < rows) & (x < columns)
    real = tl.load(bias + number, mask=valid, other=float('-inf'))
    real = real > float('-inf')
    # Without a token it may hold anything: it asks with zeros.
    q = load_rows(query + far_head + number.to(tl.int64) * stride, real, DIM,
                  BLOCK_D, True).to(tl.float32)
    row = (batch * summaries + number) * heads + head
    if BACKWARD:
        grad = load_rows(grad_out + row * DIM, valid, DIM, BLOCK_D, True)
        first = tl.load(logsum + row, mask=valid, other=float('inf'))
        second = tl.load(delta + row, mask=valid, other=0.0)
    else:
        grad = q
        first = tl.full([BLOCK_M], float('-inf'), tl.float32)
        second = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    state = tl.zeros([BLOCK_M], tl.uint32)
    unhashed = tl.zeros([1], tl.uint32)
    tokens = tl.cast(height, tl.int64) * width
    if DROPOUT:
        state = row_state(
            tl.load(seed), (batch * heads + head) * tokens +
            _asker(y, x, place % PARTS, level, width, NDIM, SIDE, RANK))

    box_y, box_x, down, across = _box_of(tile_y, tile_x, rows, columns, whole,
                                         TILE_Y, TILE_X)
    entries = down * across * PARTS
    for begin in range(0, entries, BLOCK_N):
        entry = begin + tl.arange(0, BLOCK_N)
        key_y, key_x, found = _subcells(entry, box_y, box_x, across, start,
                                        columns, PARTS)
        found = tl.where(entry < entries, found, -1)
        k, v, weight = load_summaries(key + far_head, value + far_head, bias,
                                      found, stride, DIM, BLOCK_D)
        seen = _sees(y[:, None], x[:, None], key_y[None, :], key_x[None, :],
                     whole)
        hashed = unhashed
        if DROPOUT:
            hashed = key_state(tokens + found)
        first, second, total = step(q, k.to(tl.float32), v.to(tl.float32),
                                    weight, seen, state, hashed, threshold,
                                    keep_scale, scale, grad, first, second,
                                    total, BACKWARD, True, True, DROPOUT,
                                    PRECISION, False)

    if BACKWARD:
        # Logits are in base 2: their scale holds log2(e).
        total = tl.where(real[:, None], total * (scale * 0.6931471805599453),
                         0.0)
        store_rows(grad_query + row * DIM, total, valid, DIM, BLOCK_D)
    else:
        empty = second == 0.0
        total = total / tl.where(empty, 1.0, second)[:, None]
        store_rows(out + row * DIM, total, valid, DIM, BLOCK_D)
        row_lse = first + tl.log2(tl.where(empty, 1.0, second))
        row_lse *= 0.6931471805599453  # ln(2)
        tl.store(
            lse + row, tl.where(empty, float('-inf'), row_lse), mask=valid)


@triton.jit
def subcell_key_kernel(
        query, key, value, bias, levels, table, seed, logsum, grad_out, delta,
        grad_key, grad_value, bias_batch, summaries, tiles, num_levels, height,
        width, heads, scale, threshold, keep_scale, DIM: tl.constexpr,
        BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
        NDIM: tl.constexpr, SIDE: tl.constexpr, RANK: tl.constexpr,
        PARTS: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
        DROPOUT: tl.constexpr, PRECISION: tl.constexpr):
    """The same for a block of keys: ``grad_key`` and ``grad_value``."""
    BLOCKS: tl.constexpr = (TILE_Y * TILE_X * PARTS + BLOCK_N - 1) // BLOCK_N
    batch, head, level, tile_y, tile_x, block = _tile_of(
        tl.program_id(0), heads, tiles, table, num_levels, TILE_Y, TILE_X,
        BLOCKS)
    whole = level == num_levels - 1
    start = tl.load(levels + level * 3)
    rows = tl.load(levels + level * 3 + 1)
    columns = tl.load(levels + level * 3 + 2)
    far_head = (batch * summaries * heads + head) * DIM
    stride = heads * DIM
    bias += batch * bias_batch

    place = block * BLOCK_N + tl.arange(0, BLOCK_N)
    y, x, number = _subcells(place, tile_y, tile_x, TILE_X, start, columns,
                             PARTS)
    valid = (place < TILE_Y * TILE_X * PARTS) & (y < rows) & (x < columns)
    found = tl.where(valid, number, -1)
    k, v, weight = load_summaries(key + far_head, value + far_head, bias,
                                  found, stride, DIM, BLOCK_D)
    k = k.to(tl.float32)
    v = v.to(tl.float32)
    hashed = tl.zeros([1], tl.uint32)
    unhashed = tl.zeros([1], tl.uint32)
    tokens = tl.cast(height, tl.int64) * width
    if DROPOUT:
        drawn = tl.load(seed)
        hashed = key_state(tokens + found)
    total_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    box_y, box_x, down, across = _box_of(tile_y, tile_x, rows, columns, whole,
                                         TILE_Y, TILE_X)
    entries = down * across * PARTS
    for begin in range(0, entries, BLOCK_M):
        entry = begin + tl.arange(0, BLOCK_M)
        asks_y, asks_x, asks = _subcells(entry, box_y, box_x, across, start,
                                         columns, PARTS)
        inside = entry < entries
        real = tl.load(bias + asks, mask=inside, other=float('-inf'))
        q = load_rows(query + far_head + asks.to(tl.int64) * stride, real
                      > float('-inf'), DIM, BLOCK_D, True)
        row = (batch * summaries + asks) * heads + head
        grad = load_rows(grad_out + row * DIM, inside, DIM, BLOCK_D, True)
        row_lse = tl.load(logsum + row, mask=inside, other=float('inf'))
        row_delta = tl.load(delta + row, mask=inside, other=0.0)
        seen = _sees(y[:, None], x[:, None], asks_y[None, :], asks_x[None, :],
                     whole)
        state = unhashed
        if DROPOUT:
            state = row_state(drawn, (batch * heads + head) * tokens + _asker(
                asks_y, asks_x, entry % PARTS, level, width, NDIM, SIDE, RANK))
        total_k, total_v = key_slopes(k, v, weight, seen, q.to(tl.float32),
                                      grad, row_lse, row_delta, hashed, state,
                                      threshold, keep_scale, scale, total_k,
                                      total_v, True, True, DROPOUT, PRECISION,
                                      False)

    row = (batch * summaries + number) * heads + head
    total_k *= scale * 0.6931471805599453
    store_rows(grad_key + row * DIM, total_k, valid, DIM, BLOCK_D)
    store_rows(grad_value + row * DIM, total_v, valid, DIM, BLOCK_D)


@dataclass(frozen=True)
class Tiles:
    """How the cells of all levels are cut.

    Attributes:
        side: rows and columns of a tile in cells.
        table: int32 ``[levels, 2]``: a level's first tile, columns of tiles.
        count: tiles of an image and head.
    """
    side: Tuple[int, int]
    table: Tensor
    count: int


@lru_cache(maxsize=256)
def level_tiles(hierarchy: Hierarchy, device: torch.device) -> Tiles:
    """The smallest tiles that hold whole parents and fill a block."""
    cells = 2
    while (cells * hierarchy.rank)**hierarchy.ndim < LEAST_TILE:
        cells *= 2
    rows, count = [], 0
    for grid in hierarchy.grids:
        tiles = [-(-size // cells) for size in grid]
        rows.append((count, tiles[-1]))
        count += prod(tiles)
    return Tiles((cells if hierarchy.ndim == 2 else 1, cells),
                 torch.tensor(rows, dtype=torch.int32, device=device), count)


def _arguments(call: Call, tiles: Tiles, scale: float, half: bool) -> dict:
    """What both kernels have in common.

    ``scale`` may be negative here: every logit has a bias.
    """
    p = call.plan
    numbers = dict(call.numbers, scale=scale * 1.4426950408889634)  # log2(e)
    del numbers['UPCAST']
    if half:  # exact for what has 11 bits or fewer
        numbers['PRECISION'] = 'tf32'
    return dict(
        table=tiles.table,
        tiles=tiles.count,
        num_levels=call.hierarchy.num_levels,
        height=p.height,
        width=p.width,
        heads=call.heads,
        DIM=call.dim,
        BLOCK_D=call.shape['BLOCK_D'],
        NDIM=p.ndim,
        SIDE=p.cell // p.rank,
        RANK=p.rank,
        TILE_Y=tiles.side[0],
        TILE_X=tiles.side[1],
        **call.far,
        **numbers)


def _programs(call: Call, tiles: Tiles, block: int) -> int:
    points = prod(tiles.side) * call.plan.parts
    return call.batch * call.heads * tiles.count * -(-points // block)


def walk_levels(call: Call,
                scale: float,
                query: Tensor,
                key: Tensor,
                value: Tensor,
                out: Optional[Tensor] = None,
                lse: Optional[Tensor] = None,
                grads: Optional[Tuple[Tensor, Tensor, Tensor]] = None,
                grad_query: Optional[Tensor] = None) -> None:
    """Fills ``out`` and ``lse`` of every sub-cell's own list; or, given
    ``grads`` (of outputs, with logsum and delta), ``grad_query``."""
    backward = grads is not None
    if not backward:
        grads, grad_query = (out, lse, lse), out
    else:
        out, lse = grads[:2]
    tiles = level_tiles(call.hierarchy, query.device)
    config = configs.subcell_config(call.work,
                                    prod(tiles.side) * call.plan.parts)
    arguments = dict(
        query=query,
        key=key,
        value=value,
        out=out,
        lse=lse,
        grad_out=grads[0],
        logsum=grads[1],
        delta=grads[2],
        grad_query=grad_query,
        BACKWARD=backward,
        **_arguments(call, tiles, scale, query.dtype.itemsize == 2))
    run(subcell_kernel, _programs(call, tiles, config['BLOCK_M']), config,
        arguments)


def level_slopes(call: Call, scale: float, query: Tensor, key: Tensor,
                 value: Tensor, grads: Tuple[Tensor, Tensor, Tensor],
                 grad_key: Tensor, grad_value: Tensor) -> None:
    """Fills the gradients of packed keys and values."""
    tiles = level_tiles(call.hierarchy, query.device)
    config = configs.subcell_key_config(call.work,
                                        prod(tiles.side) * call.plan.parts)
    arguments = dict(
        query=query,
        key=key,
        value=value,
        grad_out=grads[0],
        logsum=grads[1],
        delta=grads[2],
        grad_key=grad_key,
        grad_value=grad_value,
        **_arguments(call, tiles, scale, query.dtype.itemsize == 2))
    run(subcell_key_kernel, _programs(call, tiles, config['BLOCK_N']), config,
        arguments)
