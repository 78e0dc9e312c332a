"""Pooled queries: from the own lists of sub-cells to all that they see.

A sub-cell sees its own list and those of its ancestors: downwards, their
outputs are merged by log-sum-exp. Upwards, a sub-cell's share in a softmax
below it is ``exp(its lse - the lse below)``, so the gradients are sums with
these weights, level by level, in a fixed order.
"""
from typing import Tuple

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .blocks import load_rows, store_rows, token_offset
from .call import Call, run, strides

# Rows of channels that a program reads at once.
BLOCK = 16


@triton.jit
def _locate(heads, programs):
    """Image, head and program of the image."""
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    program = program // heads
    return (program // programs).to(tl.int64), head, program % programs


@triton.jit
def _point(number, columns, NDIM: tl.constexpr, RANK: tl.constexpr,
           PARTS: tl.constexpr):
    """Number of a sub-cell in its level -> coordinates among sub-cells."""
    cell = number // PARTS
    part = number % PARTS
    x = cell % columns * RANK + part % RANK
    y = x * 0
    if NDIM == 2:
        y = cell // columns * RANK + part // RANK
    return y, x


@triton.jit
def _number(y, x, columns, NDIM: tl.constexpr, RANK: tl.constexpr,
            PARTS: tl.constexpr):
    """The inverse of :func:`_point`."""
    cell = x // RANK
    part = x % RANK
    if NDIM == 2:
        cell += y // RANK * columns
        part += y % RANK * RANK
    return cell * PARTS + part


@triton.jit
def merge_kernel(own_out, own_lse, levels, out, lse, summaries, programs,
                 num_levels, heads, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
                 BLOCK: tl.constexpr, NDIM: tl.constexpr, RANK: tl.constexpr,
                 PARTS: tl.constexpr):
    """One softmax over the own lists of a sub-cell and of its ancestors.

    All are float32 and packed, ``[B, M, heads, D]`` and ``[B, M, heads]``.
    """
    batch, head, program = _locate(heads, programs)
    packed = program * BLOCK + tl.arange(0, BLOCK)
    valid = packed < summaries
    level = packed * 0
    for other in range(1, num_levels):
        level += (packed >= tl.load(levels + other * 3)).to(tl.int32)
    columns = tl.load(levels + level * 3 + 2)
    y, x = _point(packed - tl.load(levels + level * 3), columns, NDIM, RANK,
                  PARTS)
    first = batch * summaries
    row_max = tl.full([BLOCK], float('-inf'), tl.float32)
    row_sum = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for _ in range(num_levels):
        there = valid & (level < num_levels)
        start = tl.load(levels + level * 3, mask=there, other=0)
        columns = tl.load(levels + level * 3 + 2, mask=there, other=1)
        number = start + _number(y, x, columns, NDIM, RANK, PARTS)
        row = (first + number) * heads + head
        logit = tl.load(own_lse + row, mask=there, other=float('-inf'))
        logit *= 1.4426950408889634  # log2(e)
        new_max = tl.maximum(row_max, logit)
        pivot = tl.where(new_max == float('-inf'), 0.0, new_max)
        fade = tl.exp2(row_max - pivot)
        share = tl.exp2(logit - pivot)
        row_max = new_max
        row_sum = row_sum * fade + share
        total = total * fade[:, None] + share[:, None] * load_rows(
            own_out + row * DIM, there, DIM, BLOCK_D, True)
        level += 1
        y = y >> 1
        x = x >> 1
    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    row = (first + packed) * heads + head
    store_rows(out + row * DIM, total / row_sum[:, None], valid, DIM, BLOCK_D)
    row_max = (row_max + tl.log2(row_sum)) * 0.6931471805599453  # ln(2)
    tl.store(lse + row, tl.where(empty, float('-inf'), row_max), mask=valid)


@triton.jit
def from_level_kernel(grad_out, grad_lse, out, lse, levels, grad, logsum,
                      delta, summaries, programs, level, heads,
                      DIM: tl.constexpr, BLOCK_D: tl.constexpr,
                      BLOCK: tl.constexpr, NDIM: tl.constexpr,
                      RANK: tl.constexpr, PARTS: tl.constexpr,
                      CHILDREN: tl.constexpr):
    """Gradients that reach a level: what arrives there, and from below.

    Adds to ``grad_out`` what the children of each sub-cell hand up, from
    ``grad`` of the level below, and writes ``grad``; likewise ``delta``, the
    sums ``grad * out - grad_lse``, and ``logsum``, lse in base 2. All are
    float32 and packed. Level 0, the finest, has no children here.
    """
    batch, head, program = _locate(heads, programs)
    first = batch * summaries
    start = tl.load(levels + level * 3)
    rows = tl.load(levels + level * 3 + 1)
    columns = tl.load(levels + level * 3 + 2)
    number = program * BLOCK + tl.arange(0, BLOCK)
    valid = number < rows * columns * PARTS
    row = (first + start + number) * heads + head
    own = tl.load(lse + row, mask=valid, other=float('-inf'))
    own *= 1.4426950408889634  # log2(e)
    total = load_rows(grad_out + row * DIM, valid, DIM, BLOCK_D, True)
    slope = tl.sum(
        total * load_rows(out + row * DIM, valid, DIM, BLOCK_D, True), 1)
    slope -= tl.load(grad_lse + row, mask=valid, other=0.0)
    if level > 0:
        below = tl.load(levels + level * 3 - 3)
        below_rows = tl.load(levels + level * 3 - 2)
        below_columns = tl.load(levels + level * 3 - 1)
        y, x = _point(number, columns, NDIM, RANK, PARTS)
        for child in tl.static_range(CHILDREN):
            child_y = 2 * y + child // 2
            child_x = 2 * x + child % 2
            inside = valid & (child_x < below_columns * RANK)
            if NDIM == 2:
                inside = inside & (child_y < below_rows * RANK)
            other = below + _number(child_y, child_x, below_columns, NDIM,
                                    RANK, PARTS)
            other = (first + other) * heads + head
            weight = tl.load(logsum + other, mask=inside, other=float('inf'))
            weight = tl.exp2(own - weight)
            total += weight[:, None] * load_rows(grad + other * DIM, inside,
                                                 DIM, BLOCK_D, True)
            slope += weight * tl.load(delta + other, mask=inside, other=0.0)
    store_rows(grad + row * DIM, total, valid, DIM, BLOCK_D)
    tl.store(delta + row, slope, mask=valid)
    # A sub-cell without any key: its weights must become 0.
    tl.store(
        logsum + row,
        tl.where(own == float('-inf'), float('inf'), own),
        mask=valid)


@triton.jit
def from_tokens_kernel(grad_out, logsum, delta, out, lse, grad, grad_lse,
                       g_batch, g_y, g_x, g_head, out_batch, lse_batch, height,
                       width, heads, columns, count, programs,
                       DIM: tl.constexpr, BLOCK_D: tl.constexpr,
                       BLOCK: tl.constexpr, TOKENS: tl.constexpr,
                       NDIM: tl.constexpr, RANK: tl.constexpr,
                       PARTS: tl.constexpr, SIDE: tl.constexpr):
    """Gradients of output and lse of level 1, the parents of the tokens.

    A program takes BLOCK sub-cells and TOKENS of each at a time. ``logsum``
    and ``delta`` are those of the tokens; ``out`` and ``lse`` may be the
    first ``count`` rows of a packed tensor, results are contiguous.
    """
    batch, head, program = _locate(heads, programs)
    tokens = tl.cast(height, tl.int64) * width
    line = tl.arange(0, BLOCK * TOKENS)
    number = program * BLOCK + line // TOKENS
    y, x = _point(number, columns, NDIM, RANK, PARTS)
    own = tl.load(
        lse + batch * lse_batch + number * heads + head,
        mask=number < count,
        other=float('-inf'))
    own *= 1.4426950408889634  # log2(e)
    total = tl.zeros([BLOCK * TOKENS, BLOCK_D], tl.float32)
    slope = tl.zeros([BLOCK * TOKENS], tl.float32)
    grad_head = grad_out + batch * g_batch + head * g_head
    for step in range(0, SIDE**NDIM, TOKENS):
        place = step + line % TOKENS
        token_y = y * SIDE + place // SIDE
        token_x = x * SIDE + place % SIDE
        inside = (number < count) & (place < SIDE**NDIM)
        inside = inside & (token_y < height) & (token_x < width)
        token = (batch * tokens +
                 token_offset(token_y, token_x, width, 1)) * heads + head
        weight = tl.load(logsum + token, mask=inside, other=float('inf'))
        weight = tl.exp2(own - weight)
        rows = load_rows(grad_head + token_offset(token_y, token_x, g_y, g_x),
                         inside, DIM, BLOCK_D, True)
        total += weight[:, None] * rows.to(tl.float32)
        slope += weight * tl.load(delta + token, mask=inside, other=0.0)
    total = tl.sum(tl.reshape(total, [BLOCK, TOKENS, BLOCK_D]), 1)
    slope = tl.sum(tl.reshape(slope, [BLOCK, TOKENS]), 1)
    number = program * BLOCK + tl.arange(0, BLOCK)
    valid = number < count
    result = load_rows(out + batch * out_batch + (number * heads + head) * DIM,
                       valid, DIM, BLOCK_D, True)
    slope = tl.sum(total * result, 1) - slope
    row = (batch * count + number) * heads + head
    store_rows(grad + row * DIM, total, valid, DIM, BLOCK_D)
    tl.store(grad_lse + row, slope, mask=valid)


def _config() -> configs.Config:
    return dict(BLOCK=BLOCK, num_warps=4, maxnreg=configs.FEW_REGISTERS)


def _constants(call: Call) -> dict:
    return dict(
        heads=call.heads,
        DIM=call.dim,
        BLOCK_D=call.shape['BLOCK_D'],
        NDIM=call.plan.ndim,
        RANK=call.plan.rank,
        PARTS=call.plan.parts)


def merge_down(call: Call, own_out: Tensor, own_lse: Tensor, out: Tensor,
               lse: Tensor) -> None:
    """Fills ``out`` and ``lse`` of all that the packed sub-cells see."""
    h = call.hierarchy
    programs = -(-h.num_summaries // BLOCK)
    arguments = dict(
        own_out=own_out,
        own_lse=own_lse,
        levels=call.far['levels'],
        out=out,
        lse=lse,
        summaries=h.num_summaries,
        programs=programs,
        num_levels=h.num_levels,
        **_constants(call))
    run(merge_kernel, call.batch * call.heads * programs, _config(), arguments)


def add_up(call: Call, grad_out: Tensor, grad_lse: Tensor, out: Tensor,
           lse: Tensor, grad: Tensor, logsum: Tensor, delta: Tensor) -> None:
    """Fills ``grad``, ``logsum`` and ``delta``, the finest level first."""
    h = call.hierarchy
    config = _config()
    if call.shape['BLOCK_D'] > 64:  # a second row of channels would spill
        config['BLOCK'] //= 2
    for level, size in enumerate(h.level_sizes):
        programs = -(-size // config['BLOCK'])
        arguments = dict(
            grad_out=grad_out,
            grad_lse=grad_lse,
            out=out,
            lse=lse,
            levels=call.far['levels'],
            grad=grad,
            logsum=logsum,
            delta=delta,
            summaries=h.num_summaries,
            programs=programs,
            level=level,
            CHILDREN=2**h.ndim,
            **_constants(call))
        run(from_level_kernel, call.batch * call.heads * programs, config,
            arguments)


def add_tokens(call: Call, grad_out: Tensor, logsum: Tensor, delta: Tensor,
               far: Tuple[Tensor,
                          Tensor], grad: Tensor, grad_lse: Tensor) -> None:
    """Fills the gradients of ``far``, output and lse of level 1."""
    p = call.plan
    side, count = p.cell // p.rank, grad.shape[1]
    tokens = min(triton.next_power_of_2(side**p.ndim), BLOCK)
    block = BLOCK // tokens
    programs = -(-count // block)
    arguments = dict(
        grad_out=grad_out,
        logsum=logsum,
        delta=delta,
        out=far[0],
        lse=far[1],
        grad=grad,
        grad_lse=grad_lse,
        **strides('g', grad_out),
        out_batch=far[0].stride(0),
        lse_batch=far[1].stride(0),
        height=p.height,
        width=p.width,
        columns=-(-p.width // p.cell),
        count=count,
        programs=programs,
        TOKENS=tokens,
        SIDE=side,
        **_constants(call))
    run(from_tokens_kernel, call.batch * call.heads * programs,
        dict(_config(), BLOCK=block), arguments)
