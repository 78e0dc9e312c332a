"""Coordinates inside a kernel: tiles, near windows, far lists.

Near boxes and windows are computed from a few integers, in place.
Derivations: ``kernels/README.md``.
"""
import triton
import triton.language as tl


@triton.jit
def locate(program, heads, tiles_y, tiles_x, BLOCKS: tl.constexpr):
    """Program number -> batch, head, tile and block of the tile.

    The heads of a tile run side by side: their rows share cache lines.
    """
    # 64 bits: heads may lie far apart.
    head = (program % heads).to(tl.int64)
    program = program // heads
    block = program % BLOCKS
    program = program // BLOCKS
    tile_x = program % tiles_x
    program = program // tiles_x
    return program // tiles_y, head, program % tiles_y, tile_x, block


@triton.jit
def box_place(place, BOX_X: tl.constexpr):
    """Row-major place in a box, at least 0 -> row and column."""
    place = place.to(tl.uint32)  # a division without a case for the sign
    return (place // BOX_X).to(tl.int32), (place % BOX_X).to(tl.int32)


@triton.jit
def on_axis(x, size):
    """``0 <= x < size`` in one comparison."""
    return x.to(tl.uint32) < tl.cast(size, tl.uint32)


@triton.jit
def box_tokens(place, y0, x0, height, width, BOX_Y: tl.constexpr,
               BOX_X: tl.constexpr):
    """Row-major places in a box of tokens -> coordinates and validity."""
    row, column = box_place(place, BOX_X)
    y = y0 + row
    x = x0 + column
    inside = (place < BOX_Y * BOX_X) & (y >= 0) & (y < height)
    return y, x, inside & (x >= 0) & (x < width)


@triton.jit
def box_range(y0, x0, height, width, BOX_Y: tl.constexpr, BOX_X: tl.constexpr):
    """Places of a box that can lie on the grid: ``[low, high)``.

    Rows off the grid are skipped; of a single row, columns too.
    """
    if BOX_Y == 1:
        low = tl.maximum(-x0, 0)
        high = tl.minimum(BOX_X, width - x0)
    else:
        low = tl.maximum(-y0, 0) * BOX_X
        high = tl.minimum(BOX_Y, height - y0) * BOX_X
    return low, high


@triton.jit
def child_bit(y, x, half):
    """One bit for the child of a parent that a local token lies in."""
    return 1 << ((y >= half).to(tl.int32) * 2 + (x >= half).to(tl.int32))


@triton.jit
def near_bits(y, x, NDIM: tl.constexpr, CELL: tl.constexpr):
    """Which children see a token, from one cell before the first child.

    Along an axis the window has the children at 1 and 2: the first sees
    cells 0 to 2, the second 1 to 3. Bits 0 and 2 are children on the left,
    bits 0 and 1 those above.
    """
    bits = tl.where(x < 3 * CELL, 5, 0) | tl.where(x >= CELL, 10, 0)
    if NDIM == 2:
        bits = bits & (
            tl.where(y < 3 * CELL, 3, 0) | tl.where(y >= CELL, 12, 0))
    return bits


@triton.jit
def far_bits(y, x, NDIM: tl.constexpr):
    """Which children see window cell (y, x): those it is not near to.

    The window of 6 cells a side has the children at 2 and 3.
    """
    near = (
        tl.where((x >= 1) & (x <= 3), 5, 0)
        | tl.where((x >= 2) & (x <= 4), 10, 0))
    if NDIM == 2:
        near = near & (
            tl.where((y >= 1) & (y <= 3), 3, 0)
            | tl.where((y >= 2) & (y <= 4), 12, 0))
    return 15 - near


@triton.jit
def window_place(entry, NDIM: tl.constexpr):
    """Number of a listed cell -> its place in the window of 6 cells a side.

    The window's cells but the parent's own children, a hole of side 2 in its
    middle: first the rows above and below the hole, then what is beside it.
    """
    if NDIM == 2:
        row = entry // 6
        outer = row < 4
        beside = entry - 24
        y = tl.where(outer, row + tl.where(row >= 2, 2, 0), 2 + beside // 4)
        column = beside % 4
        x = tl.where(outer, entry % 6, column + tl.where(column >= 2, 2, 0))
        return y, x
    return entry * 0, entry + tl.where(entry >= 2, 2, 0)


@triton.jit
def window_entry(y, x, NDIM: tl.constexpr):
    """The inverse of :func:`window_place`."""
    beside = x - tl.where(x >= 4, 2, 0)
    if NDIM == 2:
        outer = (y < 2) | (y >= 4)
        row = y - tl.where(y >= 4, 2, 0)
        return tl.where(outer, row * 6 + x, 24 + (y - 2) * 4 + beside)
    return beside


@triton.jit
def window_length(NDIM: tl.constexpr, CAUSAL: tl.constexpr):
    """Cells of a window without its hole; causal: those left of it."""
    if CAUSAL:
        return tl.constexpr(2)
    if NDIM == 2:
        return tl.constexpr(32)
    return tl.constexpr(4)


@triton.jit
def subcell_of(y, x, width, CELL: tl.constexpr, PARTS: tl.constexpr,
               SIDE: tl.constexpr):
    """Token -> number of its sub-cell of level 1, of SIDE tokens a side."""
    cell = y // CELL * tl.cdiv(width, CELL) + x // CELL
    part = y % CELL // SIDE * (CELL // SIDE) + x % CELL // SIDE
    return cell * PARTS + part


@triton.jit
def level_of(number, table, levels, COLUMNS: tl.constexpr):
    """The last level whose first number (column 0) is at most ``number``."""
    level = 0
    for other in range(1, levels):
        level += (number >= tl.load(table + other * COLUMNS)).to(tl.int32)
    return level


@triton.jit
def summary_at(levels, level, y, x, part, valid, PARTS: tl.constexpr):
    """Cell of a level (0 = finest) -> packed summary; -1 off the grid."""
    start = tl.load(levels + level * 3, mask=valid, other=0)
    rows = tl.load(levels + level * 3 + 1, mask=valid, other=0)
    columns = tl.load(levels + level * 3 + 2, mask=valid, other=0)
    valid = valid & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    return tl.where(valid, start + (y * columns + x) * PARTS + part, -1)


@triton.jit
def top_summaries(entry, level, levels, PARTS: tl.constexpr):
    """Entries of a whole grid -> packed summary, its cell's coordinates."""
    start = tl.load(levels + level * 3)
    rows = tl.load(levels + level * 3 + 1)
    columns = tl.load(levels + level * 3 + 2)
    cell = entry // PARTS
    found = tl.where(cell < rows * columns, start + entry, -1)
    return found, cell // columns, cell % columns


@triton.jit
def is_far(y, x, cell_y, cell_x, CAUSAL: tl.constexpr):
    """Whether the cell (y, x) is beyond the neighbours of another."""
    if CAUSAL:
        return x < cell_x - 1
    return (tl.abs(y - cell_y) > 1) | (tl.abs(x - cell_x) > 1)
