"""The kernel that walks the lists of queries: forward, and their gradient.

One walk serves both passes, so that they cannot disagree on who attends to
what: near tokens, then the summaries of every level.
"""
from typing import Optional, Tuple

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .blocks import (attend, load_rows, load_summaries, local_offset,
                     query_slopes, store_rows, token_offset)
from .call import Call, run, strides, wide
from .dropout import key_state, row_state
from .geometry import (box_place, box_range, box_tokens, child_bit, is_far,
                       locate, near_bits, on_axis, subcell_of, top_summaries)
from .lists import far_lists, no_lists


@triton.jit
def step(q, k, v, bias, seen, row, key, threshold, keep_scale, scale, grad,
         first, second, total, BACKWARD: tl.constexpr, BIASED: tl.constexpr,
         HIDES: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
         UPCAST: tl.constexpr):
    """A block of keys: ``first, second`` are the running maximum and sum of
    the forward pass, lse and delta of the backward pass."""
    if BACKWARD:
        total = query_slopes(q, k, v, bias, seen, row, key, threshold,
                             keep_scale, scale, grad, first, second, total,
                             BIASED, HIDES, DROPOUT, PRECISION, UPCAST)
    else:
        first, second, total = attend(q, k, v, bias, seen, row, key, threshold,
                                      keep_scale, scale, first, second, total,
                                      BIASED, HIDES, DROPOUT, PRECISION,
                                      UPCAST)
    return first, second, total


@triton.jit
def _far_step(q, found, seen, state, tokens, key_far, value_far, far_bias,
              stride, threshold, keep_scale, scale, grad, first, second, total,
              BACKWARD: tl.constexpr, HIDES: tl.constexpr, DIM: tl.constexpr,
              BLOCK_D: tl.constexpr, DROPOUT: tl.constexpr,
              PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """A block of summaries, by their packed numbers; -1 stands for none."""
    k, v, bias = load_summaries(key_far, value_far, far_bias, found, stride,
                                DIM, BLOCK_D)
    hashed = tl.zeros([1], tl.uint32)
    if DROPOUT:
        hashed = key_state(tokens + found)
    return step(q, k, v, bias, seen, state, hashed, threshold, keep_scale,
                scale, grad, first, second, total, BACKWARD, True, HIDES,
                DROPOUT, PRECISION, UPCAST)


@triton.jit
def query_kernel(
        query, key, value, key_summaries, value_summaries, bias, key_mask,
        levels, lists, finest, finest_bits, seed, out, lse, grad_out, grad_lse,
        logsum, delta, grad_query, far_out, far_lse, q_batch, q_y, q_x, q_head,
        k_batch, k_y, k_x, k_head, v_batch, v_y, v_x, v_head, g_batch, g_y,
        g_x, g_head, mask_batch, mask_y, mask_x, bias_batch, summaries,
        far_out_batch, far_lse_batch, height, width, heads, tiles_y, tiles_x,
        listed, top_level, top_entries, scale, threshold, keep_scale,
        DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, NDIM: tl.constexpr,
        CELL: tl.constexpr, PARTS: tl.constexpr, GROUPED: tl.constexpr,
        CAUSAL: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
        BOX_Y: tl.constexpr, BOX_X: tl.constexpr, MARGIN_Y: tl.constexpr,
        MARGIN_X: tl.constexpr, FINEST: tl.constexpr, TOP: tl.constexpr,
        SIDE: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
        DROPOUT: tl.constexpr, BACKWARD: tl.constexpr, PRECISION: tl.constexpr,
        UPCAST: tl.constexpr):
    """A block of queries of one tile and head.

    Forward writes ``out`` and ``lse``; BACKWARD reads them and writes
    ``logsum = lse * log2(e)``,
    ``delta = sum(grad_out * out) - grad_lse`` and ``grad_query``. Those and
    the packed summaries ``[B, M, heads, D]`` are contiguous; inputs and
    ``grad_out`` have strides. ``bias [B or 1, M]`` is
    log2(mass), -inf for nothing. The
    lists of summaries are int32, -1 for none: ``lists [tiles, listed]``, and
    for the finest level of parents ``finest [tiles, FINEST]``, where
    ``finest_bits [FINEST]`` says which children see an entry. With TOP, the
    whole grid of the last level is a list as well.

    With SIDE > 0 all of these stay unread: queries are pooled, and what is
    far is one key more, of the query's sub-cell of so many tokens a side:
    ``far_out``, float32 ``[B, rows, heads, D]``, and ``far_lse``, its logit.
    """
    BLOCKS: tl.constexpr = (TILE_Y * TILE_X + BLOCK_M - 1) // BLOCK_M
    batch, head, tile_y, tile_x, block = locate(
        tl.program_id(0), heads, tiles_y, tiles_x, BLOCKS)
    batch = batch.to(tl.int64)
    tokens = tl.cast(height, tl.int64) * width
    y, x, valid = box_tokens(block * BLOCK_M + tl.arange(0, BLOCK_M),
                             tile_y * TILE_Y, tile_x * TILE_X, height, width,
                             TILE_Y, TILE_X)
    q = load_rows(
        query + batch * q_batch + head * q_head + token_offset(y, x, q_y, q_x),
        valid, DIM, BLOCK_D, True)
    # Row of ``out``, ``lse`` and ``delta``: (image, query, head).
    row = (batch * tokens + token_offset(y, x, width, 1)) * heads + head
    if BACKWARD:
        grad = load_rows(
            grad_out + batch * g_batch + head * g_head +
            token_offset(y, x, g_y, g_x), valid, DIM, BLOCK_D, True)
        result = load_rows(out + row * DIM, valid, DIM, BLOCK_D, True)
        first = tl.load(lse + row, mask=valid, other=0.0)
        # A query without any key: its weights must become 0.
        first = tl.where(first == float('-inf'), float('inf'), first)
        first *= 1.4426950408889634  # log2(e)
        tl.store(logsum + row, first, mask=valid)
        second = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
        second -= tl.load(grad_lse + row, mask=valid, other=0.0)
        tl.store(delta + row, second, mask=valid)
    else:
        grad = q
        first = tl.full([BLOCK_M], float('-inf'), tl.float32)
        second = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if SIDE > 0 and not BACKWARD:
        parent = subcell_of(y, x, width, CELL, PARTS, SIDE) * heads + head
        first = tl.load(
            far_lse + batch * far_lse_batch + parent,
            mask=valid,
            other=float('-inf'))
        first *= 1.4426950408889634  # log2(e)
        some = first > float('-inf')
        second = tl.where(some, 1.0, 0.0)
        total = load_rows(far_out + batch * far_out_batch + parent * DIM, some,
                          DIM, BLOCK_D, True)
    bits = tl.full([BLOCK_M], 1, tl.int32)
    if GROUPED:
        bits = child_bit(y - tile_y * TILE_Y, x - tile_x * TILE_X, CELL)
    state = tl.zeros([BLOCK_M], tl.uint32)
    unhashed = tl.zeros([1], tl.uint32)
    if DROPOUT:
        state = row_state(
            tl.load(seed),
            (batch * heads + head) * tokens + token_offset(y, x, width, 1))
    nothing = tl.zeros([1], tl.float32)
    everyone = tl.full([1, 1], 1, tl.int1)

    # Near tokens: a box around the tile, row by row. Its first blocks are
    # wholly on the grid and before the queries, where that can be had.
    box_y = tile_y * TILE_Y - MARGIN_Y
    box_x = tile_x * TILE_X - MARGIN_X
    low, high = box_range(box_y, box_x, height, width, BOX_Y, BOX_X)
    plain = high
    if CAUSAL:
        plain = tl.minimum(high, MARGIN_X + block * BLOCK_M)
        high = tl.minimum(high, MARGIN_X + (block + 1) * BLOCK_M)
    if MASKED:
        plain = low
    elif BOX_Y > 1:
        off_grid = (box_x < 0) | (box_x + BOX_X > width)
        plain = tl.where(off_grid, low, plain)
    plain = low + tl.maximum(plain - low, 0) // BLOCK_N * BLOCK_N
    key_box = (
        key + batch * k_batch + head * k_head +
        token_offset(box_y, box_x, k_y, k_x))
    value_box = (
        value + batch * v_batch + head * v_head +
        token_offset(box_y, box_x, v_y, v_x))
    for start in range(low, plain, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        near_y, near_x = box_place(place, BOX_X)
        k = load_rows(key_box + local_offset(near_y, near_x, k_y, k_x, WIDE),
                      place, DIM, BLOCK_D, False)
        v = load_rows(value_box + local_offset(near_y, near_x, v_y, v_x, WIDE),
                      place, DIM, BLOCK_D, False)
        seen = everyone
        if GROUPED:
            seen = ((near_bits(near_y, near_x, NDIM, CELL)[None, :]
                     & bits[:, None]) != 0)
        hashed = unhashed
        if DROPOUT:
            hashed = key_state((box_y + near_y) * width + box_x + near_x)
        first, second, total = step(q, k, v, nothing, seen, state, hashed,
                                    threshold, keep_scale, scale, grad, first,
                                    second, total, BACKWARD, False, GROUPED,
                                    DROPOUT, PRECISION, UPCAST)
    for start in range(plain, high, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        near_y, near_x = box_place(place, BOX_X)
        real = (place < high) & on_axis(box_x + near_x, width)
        if MASKED:
            real = tl.load(
                key_mask + batch * mask_batch +
                token_offset(box_y + near_y, box_x + near_x, mask_y, mask_x),
                mask=real,
                other=0) != 0
        k = load_rows(key_box + local_offset(near_y, near_x, k_y, k_x, WIDE),
                      real, DIM, BLOCK_D, True)
        v = load_rows(value_box + local_offset(near_y, near_x, v_y, v_x, WIDE),
                      real, DIM, BLOCK_D, True)
        seen = real[None, :]
        if GROUPED:
            seen = seen & ((near_bits(near_y, near_x, NDIM, CELL)[None, :]
                            & bits[:, None]) != 0)
        if CAUSAL:
            seen = seen & (near_x[None, :] <= (x - box_x)[:, None])
        hashed = unhashed
        if DROPOUT:
            hashed = key_state((box_y + near_y) * width + box_x + near_x)
        first, second, total = step(q, k, v, nothing, seen, state, hashed,
                                    threshold, keep_scale, scale, grad, first,
                                    second, total, BACKWARD, False, True,
                                    DROPOUT, PRECISION, UPCAST)

    if SIDE == 0:
        # Far summaries; a row of them is (image, summary, head).
        stride = heads * DIM
        far_head = (batch * summaries * heads + head) * DIM
        key_far = key_summaries + far_head
        value_far = value_summaries + far_head
        far_bias = bias + batch * bias_batch
        tile = tile_y * tiles_x + tile_x
        if GROUPED:
            for start in range(0, FINEST, BLOCK_F):
                entry = start + tl.arange(0, BLOCK_F)
                found = tl.load(finest + tile * FINEST + entry)
                seen_by = tl.load(finest_bits + entry)
                seen = (seen_by[None, :] & bits[:, None]) > 0
                first, second, total = _far_step(
                    q, found, seen, state, tokens, key_far, value_far,
                    far_bias, stride, threshold, keep_scale, scale, grad,
                    first, second, total, BACKWARD, True, DIM, BLOCK_D,
                    DROPOUT, PRECISION, UPCAST)
        for start in range(0, listed, BLOCK_F):
            found = tl.load(lists + tile * listed + start +
                            tl.arange(0, BLOCK_F))
            first, second, total = _far_step(q, found, everyone, state, tokens,
                                             key_far, value_far, far_bias,
                                             stride, threshold, keep_scale,
                                             scale, grad, first, second, total,
                                             BACKWARD, False, DIM, BLOCK_D,
                                             DROPOUT, PRECISION, UPCAST)
        if TOP:
            # One cell of the top level holds the whole tile.
            up = top_level - (1 if GROUPED else 0)
            for start in range(0, top_entries, BLOCK_F):
                found, cell_y, cell_x = top_summaries(
                    start + tl.arange(0, BLOCK_F), top_level, levels, PARTS)
                far = is_far(cell_y, cell_x, tile_y >> up, tile_x >> up,
                             CAUSAL)
                first, second, total = _far_step(
                    q, tl.where(far, found, -1), everyone, state, tokens,
                    key_far, value_far, far_bias, stride, threshold,
                    keep_scale, scale, grad, first, second, total, BACKWARD,
                    False, DIM, BLOCK_D, DROPOUT, PRECISION, UPCAST)

    if BACKWARD:
        # Logits are in base 2: their scale holds log2(e).
        store_rows(grad_query + row * DIM,
                   total * (scale * 0.6931471805599453), valid, DIM, BLOCK_D)
    else:
        empty = second == 0.0
        total = total / tl.where(empty, 1.0, second)[:, None]
        store_rows(out + row * DIM, total, valid, DIM, BLOCK_D)
        row_lse = first + tl.log2(tl.where(empty, 1.0, second))
        row_lse *= 0.6931471805599453  # ln(2)
        tl.store(
            lse + row, tl.where(empty, float('-inf'), row_lse), mask=valid)


def walk(call: Call,
         query: Tensor,
         key: Tensor,
         value: Tensor,
         far: Tuple[Tensor, Tensor],
         out: Tensor,
         lse: Tensor,
         grad_out: Optional[Tensor] = None,
         grad_lse: Optional[Tensor] = None,
         logsum: Optional[Tensor] = None,
         delta: Optional[Tensor] = None,
         grad_query: Optional[Tensor] = None,
         pooled: bool = False) -> None:
    """Fills ``out`` and ``lse``; given ``grad_out``, reads these and fills
    ``logsum`` (lse in base 2), ``delta`` and ``grad_query``.

    ``far`` is the packed summaries of keys and values; with ``pooled``, what
    the sub-cells of level 1 know of them: output and lse.
    """
    p, backward = call.plan, grad_out is not None
    if not backward:
        grad_out = grad_query = out
        grad_lse = logsum = delta = lse
    if pooled:
        summaries, parents, lists = (query, query), far, no_lists(query.device)
    else:
        summaries, parents = far, (out, lse)
        lists = far_lists(call.hierarchy, query.device)
    config = configs.query_config(call.work, lists.block, backward)
    arguments = dict(
        query=query,
        key=key,
        value=value,
        key_summaries=summaries[0],
        value_summaries=summaries[1],
        out=out,
        lse=lse,
        grad_out=grad_out,
        grad_lse=grad_lse,
        logsum=logsum,
        delta=delta,
        grad_query=grad_query,
        far_out=parents[0],
        far_lse=parents[1],
        far_out_batch=parents[0].stride(0),
        far_lse_batch=parents[1].stride(0),
        **strides('q', query),
        **strides('k', key),
        **strides('v', value),
        **strides('g', grad_out),
        **call.shape,
        **call.tiles,
        **call.mask,
        **call.far,
        **call.numbers,
        lists=lists.index,
        listed=lists.index.shape[1],
        finest=lists.finest,
        finest_bits=lists.bits,
        FINEST=lists.bits.shape[0],
        top_level=max(call.hierarchy.num_levels - 1, 0),
        top_entries=call.hierarchy.level_sizes[-1] if p.top else 0,
        MARGIN_Y=p.margin[0],
        MARGIN_X=p.margin[1],
        TOP=p.top and not pooled,
        SIDE=p.cell // p.rank if pooled else 0,
        WIDE=wide(p.window, query, key, value),
        BACKWARD=backward)
    run(query_kernel, call.programs(config['BLOCK_M']), config, arguments)
