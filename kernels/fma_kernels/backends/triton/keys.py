"""Gradients of near keys and values, over the queries that see them."""
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .blocks import (key_slopes, load_rows, local_offset, store_rows,
                     token_offset)
from .call import Call, run, strides, wide
from .dropout import key_state, row_state
from .geometry import (box_place, box_range, box_tokens, child_bit, locate,
                       near_bits, on_axis)


@triton.jit
def key_kernel(
        query, key, value, key_mask, seed, logsum, grad_out, delta, grad_key,
        grad_value, q_batch, q_y, q_x, q_head, k_batch, k_y, k_x, k_head,
        v_batch, v_y, v_x, v_head, g_batch, g_y, g_x, g_head, mask_batch,
        mask_y, mask_x, height, width, heads, tiles_y, tiles_x, scale,
        threshold, keep_scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NDIM: tl.constexpr,
        CELL: tl.constexpr, GROUPED: tl.constexpr, CAUSAL: tl.constexpr,
        TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BOX_Y: tl.constexpr,
        BOX_X: tl.constexpr, MARGIN_Y: tl.constexpr, MARGIN_X: tl.constexpr,
        WIDE: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
        PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """A block of keys of one tile and head: ``grad_key``, ``grad_value``.

    Being near is mutual: the queries lie in the box that held a query's
    keys, for causal attention mirrored. ``logsum``, ``delta`` and the
    results are contiguous.
    """
    BLOCKS: tl.constexpr = (TILE_Y * TILE_X + BLOCK_N - 1) // BLOCK_N
    batch, head, tile_y, tile_x, block = locate(
        tl.program_id(0), heads, tiles_y, tiles_x, BLOCKS)
    batch = batch.to(tl.int64)
    tokens = tl.cast(height, tl.int64) * width
    y, x, valid = box_tokens(block * BLOCK_N + tl.arange(0, BLOCK_N),
                             tile_y * TILE_Y, tile_x * TILE_X, height, width,
                             TILE_Y, TILE_X)
    real = valid
    if MASKED:
        real = tl.load(
            key_mask + batch * mask_batch + token_offset(y, x, mask_y, mask_x),
            mask=valid,
            other=0) != 0
    k = load_rows(
        key + batch * k_batch + head * k_head + token_offset(y, x, k_y, k_x),
        real, DIM, BLOCK_D, True)
    v = load_rows(
        value + batch * v_batch + head * v_head + token_offset(y, x, v_y, v_x),
        real, DIM, BLOCK_D, True)
    if GROUPED:
        bits = child_bit(y - tile_y * TILE_Y, x - tile_x * TILE_X, CELL)
    hashed = tl.zeros([1], tl.uint32)
    unhashed = tl.zeros([1], tl.uint32)
    if DROPOUT:
        number = tl.load(seed)
        hashed = key_state(y * width + x)
    total_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    nothing = tl.zeros([1], tl.float32)
    everyone = tl.full([1, 1], 1, tl.int1)

    box_y = tile_y * TILE_Y - MARGIN_Y
    box_x = tile_x * TILE_X - MARGIN_X
    low, high = box_range(box_y, box_x, height, width, BOX_Y, BOX_X)
    # Causal: queries from the block's first key on; those among the block's
    # own places need a comparison, later ones see all of it.
    mixed = low
    if CAUSAL:
        low = tl.maximum(low, MARGIN_X + block * BLOCK_N)
        mixed = low + tl.cdiv(
            tl.maximum(MARGIN_X +
                       (block + 1) * BLOCK_N - low, 0), BLOCK_M) * BLOCK_M
    query_box = (
        query + batch * q_batch + head * q_head +
        token_offset(box_y, box_x, q_y, q_x))
    grad_box = (
        grad_out + batch * g_batch + head * g_head +
        token_offset(box_y, box_x, g_y, g_x))
    row_box = (batch * tokens +
               token_offset(box_y, box_x, width, 1)) * heads + head
    for PART in tl.static_range(0 if CAUSAL else 1, 2):
        for start in range(low if PART == 0 else mixed,
                           tl.minimum(mixed, high) if PART == 0 else high,
                           BLOCK_M):
            place = start + tl.arange(0, BLOCK_M)
            near_y, near_x = box_place(place, BOX_X)
            # A query off the grid is read as zeros: it adds nothing.
            asks = (place < high) & on_axis(box_x + near_x, width)
            q = load_rows(
                query_box + local_offset(near_y, near_x, q_y, q_x, WIDE), asks,
                DIM, BLOCK_D, True)
            grad = load_rows(
                grad_box + local_offset(near_y, near_x, g_y, g_x, WIDE), asks,
                DIM, BLOCK_D, True)
            row = row_box + local_offset(near_y, near_x, width * heads, heads,
                                         WIDE)
            row_lse = tl.load(logsum + row, mask=asks, other=0.0)
            row_delta = tl.load(delta + row, mask=asks, other=0.0)
            seen = everyone
            if GROUPED:
                # Windows of causal queries begin at the tile itself.
                seen_by = near_bits(near_y + (CELL - MARGIN_Y),
                                    near_x + (CELL - MARGIN_X), NDIM, CELL)
                seen = (bits[:, None] & seen_by[None, :]) != 0
            if PART == 0:
                seen = seen & ((x - box_x)[:, None] <= near_x[None, :])
            state = unhashed
            if DROPOUT:
                state = row_state(
                    number, (batch * heads + head) * tokens +
                    token_offset(box_y + near_y, box_x + near_x, width, 1))
            total_k, total_v = key_slopes(k, v, nothing, seen, q, grad,
                                          row_lse, row_delta, hashed, state,
                                          threshold, keep_scale, scale,
                                          total_k, total_v, False, GROUPED
                                          or PART == 0, DROPOUT, PRECISION,
                                          UPCAST)

    row = (batch * tokens + token_offset(y, x, width, 1)) * heads + head
    # A masked key was read as 0; its gradient is 0.
    total_k = tl.where(real[:, None], total_k * (scale * 0.6931471805599453),
                       0.0)
    total_v = tl.where(real[:, None], total_v, 0.0)
    store_rows(grad_key + row * DIM, total_k, valid, DIM, BLOCK_D)
    store_rows(grad_value + row * DIM, total_v, valid, DIM, BLOCK_D)


def near_slopes(call: Call, query: Tensor, key: Tensor, value: Tensor,
                logsum: Tensor, grad_out: Tensor, delta: Tensor,
                grad_key: Tensor, grad_value: Tensor) -> None:
    """Fills ``grad_key`` and ``grad_value`` of near tokens."""
    p = call.plan
    config = configs.key_config(call.work)
    arguments = dict(
        query=query,
        key=key,
        value=value,
        logsum=logsum,
        grad_out=grad_out,
        delta=delta,
        grad_key=grad_key,
        grad_value=grad_value,
        **strides('q', query),
        **strides('k', key),
        **strides('v', value),
        **strides('g', grad_out),
        **call.shape,
        **call.tiles,
        **call.mask,
        **call.numbers,
        MARGIN_Y=p.query_margin[0],
        MARGIN_X=p.query_margin[1],
        WIDE=wide(p.window, query, grad_out, logsum[..., None]))
    run(key_kernel, call.programs(config['BLOCK_N']), config, arguments)
