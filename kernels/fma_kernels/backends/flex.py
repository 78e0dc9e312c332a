"""FMA through PyTorch's ``flex_attention``: a block mask over all keys.

The keys are [tokens | summaries], each part in Z-order over the cells (the
identity in 1D): the tokens of a cell of any level are then one run of rows,
and its summaries of any finer level one run of columns. So the pattern is a
signed sum of rectangles,

    level l = (parents near) - (cells near),

and the visible pairs of every 128 x 128 block are counted exactly, without a
dense mask. Within a block, an element is visible if the query's coordinates
lie inside the key's *window* and outside its *hole*: two boxes of tokens.

Kernels and gradients are PyTorch's own, so this is a second opinion on the
other backends and a baseline for their speed. Needs torch 2.5.
"""
from functools import lru_cache
from itertools import product
from math import log
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import Cell, Hierarchy
from ..pooling import accumulation_dtype

# Side of a block of the mask: what flex_attention takes by default.
BLOCK = 128
# The compiler keeps one kernel per geometry. It raises beyond this number,
# 8 by default.
_MAX_KERNELS = 64


class Layout(NamedTuple):
    """Where queries and keys go, and who sees whom.

    Attributes:
        queries: int64 ``[rows]``, the row-major token in each row; what pads
            the last block repeats token 0.
        query_places: int64 ``[N]``, its inverse.
        keys: int64 ``[columns]``, a token below ``N``, then packed
            summaries; padding repeats token 0 and is seen by no query.
        key_places: int64 ``[N + M_total]``, its inverse.
        block_mask: the ``BlockMask`` over rows and columns.
    """
    queries: Tensor
    query_places: Tensor
    keys: Tensor
    key_places: Tensor
    block_mask: object


class _Part(NamedTuple):
    """Columns of one kind: the tokens, or the summaries of one level.

    Attributes:
        start: the first column.
        order: int64 ``[size]``, packed key in each column from ``start``.
        code: Z-order code of the cell, ascending, one per ``step`` columns.
        step: columns that share a code.
        boxes: int64 ``[4, d, size]``: window from, to, hole from, to.
    """
    start: int
    order: Tensor
    code: Tensor
    step: int
    boxes: Tensor

    def columns(self, code: Tensor, shift: int) -> Tensor:
        """Columns of cells ``shift`` levels up, ``[2, cells]``: from, to."""
        ends = torch.stack([code, code + 1]) << shift * self.boxes.shape[1]
        return self.start + self.step * torch.searchsorted(self.code, ends)


def missing_flex() -> Optional[str]:
    """Why flex_attention cannot be called here, or None."""
    try:
        from torch.nn.attention import flex_attention  # noqa: F401
    except ImportError:
        return (f'torch {torch.__version__} has no flex_attention; it needs '
                'torch 2.5 or newer')
    return None


# ------------------------------------------------------------------ the order
def _points(grid: Cell) -> Tensor:
    """Row-major coordinates, int64 ``[prod(grid), d]``."""
    axes = torch.meshgrid([torch.arange(size) for size in grid], indexing='ij')
    return torch.stack(axes, dim=-1).view(-1, len(grid))


def _z_order(cells: Tensor) -> Tensor:
    """Interleaves the bits of coordinates ``[..., d]``.

    Shifting a code right by ``d`` bits gives that of the parent.
    """
    d = cells.shape[-1]
    code = torch.zeros_like(cells[..., 0])
    for bit in range(int(cells.max()).bit_length()):
        for axis in range(d):
            place = bit * d + d - 1 - axis
            code |= (cells[..., axis] >> bit & 1) << place
    return code


def _around(cells: Tensor, width: int) -> Tensor:
    """Tokens at distance at most 1 cell, ``[2, ..., d]``: from, to."""
    return torch.stack([cells - 1, cells + 2]) * width


def _token_part(hierarchy: Hierarchy) -> _Part:
    points = _points(hierarchy.shape)
    code = _z_order(points // hierarchy.cell_size)
    code, order = code.sort(stable=True)
    points = points[order]
    window = _around(points // hierarchy.cell_size, hierarchy.cell_size)
    if hierarchy.num_levels == 0:
        window = _everything(hierarchy, window)
    if hierarchy.causal:
        window[0] = points
    boxes = torch.cat([window, torch.zeros_like(window)])
    return _Part(0, order, code, 1, boxes.mT)


def _level_part(hierarchy: Hierarchy, level: int, start: int) -> _Part:
    width, parts = hierarchy.widths[level - 1], hierarchy.num_parts
    cells = _points(hierarchy.grids[level - 1])
    code, order = _z_order(cells).sort()
    cells = cells[order]
    hole = _around(cells, width)
    window = _around(cells // 2, 2 * width)
    if level == hierarchy.num_levels:
        window = _everything(hierarchy, window)
    if hierarchy.causal:  # from the right end of the hole on
        window[0], hole = hole[1], torch.zeros_like(hole)
    # [4, cells, d] -> the same for every part
    boxes = torch.cat([window, hole]).repeat_interleave(parts, dim=1)
    first = hierarchy.num_tokens + hierarchy.level_starts[level - 1]
    order = (first + order[:, None] * parts + torch.arange(parts)).flatten()
    return _Part(start, order, code, parts, boxes.mT)


def _everything(hierarchy: Hierarchy, window: Tensor) -> Tensor:
    window = torch.zeros_like(window)
    window[1] = max(hierarchy.shape)
    return window


def _pad_to_block(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _parts(hierarchy: Hierarchy) -> List[_Part]:
    """Tokens, from the next whole block on the summaries level by level."""
    parts = [_token_part(hierarchy)]
    start = _pad_to_block(hierarchy.num_tokens)
    for level in range(1, hierarchy.num_levels + 1):
        parts.append(_level_part(hierarchy, level, start))
        start += parts[-1].order.numel()
    return parts


# ----------------------------------------------------------------- the blocks
def _near(hierarchy: Hierarchy, level: int) -> Iterator[Tuple[Tensor, Tensor]]:
    """Pairs of cells of a level at distance at most 1, as Z-order codes."""
    grid = hierarchy.grids[level - 1]
    cells = _points(grid)
    limit = torch.tensor(grid)
    for offset in product((-1, 0, 1), repeat=hierarchy.ndim):
        if hierarchy.causal and offset > (0, ):
            continue
        other = cells + torch.tensor(offset)
        inside = ((other >= 0) & (other < limit)).all(-1)
        if inside.any():
            yield _z_order(cells[inside]), _z_order(other[inside])


def _rectangles(hierarchy: Hierarchy,
                parts: List[_Part]) -> Iterator[Tuple[Tensor, Tensor, int]]:
    """Rows and columns ``[2, count]`` (from, to) with a sign.

    Their sum is 1 at visible pairs and 0 elsewhere, but for the tokens of
    the query's own leaf cell in the causal case: all of them are 1.
    """
    tokens, *levels = parts
    if not levels:
        every = torch.tensor([[0], [hierarchy.num_tokens]])
        yield every, every, 1
        return
    for here, other in _near(hierarchy, 1):
        yield tokens.columns(here, 0), tokens.columns(other, 0), 1
    for level, part in enumerate(levels, 1):
        if hierarchy.causal:
            yield _left_of(hierarchy, level, tokens, part)
            continue
        if level == hierarchy.num_levels:
            every = torch.tensor([[0], [hierarchy.num_tokens]])
            stop = part.start + part.order.numel()
            yield every, torch.tensor([[part.start], [stop]]), 1
        else:
            for here, other in _near(hierarchy, level + 1):
                yield tokens.columns(here, level), part.columns(other, 1), 1
        for here, other in _near(hierarchy, level):
            yield tokens.columns(here, level - 1), part.columns(other, 0), -1


def _left_of(hierarchy: Hierarchy, level: int, tokens: _Part,
             part: _Part) -> Tuple[Tensor, Tensor, int]:
    """Causal: one interval of cells for each cell of a level."""
    cells = torch.arange(hierarchy.grids[level - 1][0])
    stop = (cells - 1).clamp(min=0)
    first = torch.zeros_like(cells)
    if level < hierarchy.num_levels:
        first = torch.minimum((cells // 2 - 1).clamp(min=0) * 2, stop)
    columns = part.start + torch.stack([first, stop]) * part.step
    return tokens.columns(cells, level - 1), columns, 1


def _steps(ends: Tensor) -> Tuple[Tensor, Tensor]:
    """Overlap of intervals with blocks, as steps from block to block.

    Args:
        ends: int64 ``[2, count]``, from and to.

    Returns:
        Blocks and steps ``[4, count]``: their running sum over the blocks is
        the number of elements of each block inside the interval.
    """
    block, rest = ends // BLOCK, ends % BLOCK
    where = torch.stack([block[0], block[0] + 1, block[1], block[1] + 1])
    step = torch.stack([BLOCK - rest[0], rest[0], rest[1] - BLOCK, -rest[1]])
    return where, step


def _count_pairs(hierarchy: Hierarchy, parts: List[_Part]) -> Tensor:
    """Visible pairs of every block, int64 ``[row blocks, column blocks]``.

    Causal blocks on the diagonal count as 1: some pairs, not all.
    """
    rows = _pad_to_block(hierarchy.num_tokens) // BLOCK
    stop = parts[-1].start + parts[-1].order.numel()
    columns = _pad_to_block(stop) // BLOCK
    # An interval may step down two blocks beyond the last.
    table = torch.zeros((rows + 2, columns + 2), dtype=torch.int64)
    for row_ends, column_ends, sign in _rectangles(hierarchy, parts):
        (row, up), (column, right) = _steps(row_ends), _steps(column_ends)
        for i, j in product(range(4), repeat=2):
            table.view(-1).index_add_(0, row[i] * table.shape[1] + column[j],
                                      sign * up[i] * right[j])
    counts = table.cumsum(0).cumsum(1)[:rows, :columns]
    if hierarchy.causal:
        counts[:, :rows].tril_()
        counts.diagonal().clamp_(max=1)
    return counts


def _as_lists(blocks: Tensor) -> Tuple[Tensor, Tensor]:
    """Counts ``[1, 1, rows]`` and indices ``[1, 1, rows, columns]``.

    ``blocks``: bool ``[rows, columns]``. The indices of True come first.
    """
    index = (~blocks).to(torch.uint8).argsort(dim=1, stable=True)
    count = blocks.sum(1)
    return count.to(torch.int32)[None, None], index.to(torch.int32)[None, None]


def _block_mask(hierarchy: Hierarchy, parts: List[_Part], mask_mod: Callable):
    from torch.nn.attention.flex_attention import BlockMask
    counts = _count_pairs(hierarchy, parts)
    # Rows that only pad the last block see nothing, and may see anything.
    first = torch.arange(counts.shape[0])[:, None] * BLOCK
    real = (hierarchy.num_tokens - first).clamp(max=BLOCK)
    full = counts == real * BLOCK
    partial = (counts > 0) & ~full
    return BlockMask.from_kv_blocks(
        *_as_lists(partial),
        *(_as_lists(full) if full.any() else ()),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod)


def _mask_mod(points: List[Tensor], boxes: List[List[Tensor]]) -> Callable:
    """Element visibility from small integer tensors.

    Args:
        points: per axis int32 ``[rows]``, the queries' coordinates.
        boxes: per axis four int32 ``[columns]``.
    """

    def mask_mod(batch, head, row, column):
        window = hole = None
        for point, (low, high, hole_low, hole_high) in zip(points, boxes):
            here = point[row]
            inside = (here >= low[column]) & (here < high[column])
            hidden = (here >= hole_low[column]) & (here < hole_high[column])
            window = inside if window is None else window & inside
            hole = hidden if hole is None else hole & hidden
        return window & ~hole

    return mask_mod


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # it outlives this call, and is saved
def layout(hierarchy: Hierarchy, device: torch.device) -> Layout:
    """Order and block mask of a hierarchy on a device (cached).

    The block tables take 8 bytes (16 if any block is full) for each pair of
    a row block and a column block: 35 to 70 MB at 262,144 tokens.
    """
    parts = _parts(hierarchy)
    count = hierarchy.num_tokens
    columns = _pad_to_block(parts[-1].start + parts[-1].order.numel())
    keys = torch.zeros(columns, dtype=torch.int64)
    key_places = torch.empty(
        count + hierarchy.num_summaries, dtype=torch.int64)
    # An empty window hides padding.
    boxes = torch.zeros((4, hierarchy.ndim, columns), dtype=torch.int32)
    for part in parts:
        place = slice(part.start, part.start + part.order.numel())
        keys[place] = part.order
        key_places[part.order] = torch.arange(place.start, place.stop)
        boxes[..., place] = part.boxes.clamp(0, max(hierarchy.shape))
    queries = keys[:_pad_to_block(count)]
    points = _points(hierarchy.shape).to(torch.int32)[queries]
    points[count:] = -1  # in nobody's window
    # Each a tensor of its own: views would carry their strides along.
    mask_mod = _mask_mod(
        [axis.contiguous().to(device) for axis in points.unbind(1)],
        [[x.contiguous().to(device) for x in axis.unbind(0)]
         for axis in boxes.unbind(1)])
    block_mask = _block_mask(hierarchy, parts, mask_mod).to(device)
    return Layout(
        queries.to(device), key_places[:count].to(device), keys.to(device),
        key_places.to(device), block_mask)


# ----------------------------------------------------------------- the call
class _Reorder(torch.autograd.Function):
    """Picks along axis 1; the gradient picks back, without any sum."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Tensor, None, None]:
        inverse, = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


def _score_mod(bias: Tensor) -> Callable:
    """Adds ``bias [B or 1, columns]``; -inf hides a key."""
    if bias.shape[0] == 1:
        row = bias[0]
        return lambda score, batch, head, q, k: score + row[k]
    return lambda score, batch, head, q, k: score + bias[batch, k]


def _dense(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable,
           block_mask, scale: float) -> Tuple[Tensor, Tensor]:
    """flex_attention's own dense form, with its own gradient.

    The public function refuses gradients on a CPU although the operator
    behind it has them; lse is in base 2 there.
    """
    from torch._higher_order_ops.flex_attention import flex_attention
    out, lse = flex_attention(query, key, value, score_mod,
                              block_mask.as_tuple(), scale, {})[:2]
    return out, lse * log(2)


def _with_lse(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable,
              block_mask, scale: float) -> Tuple[Tensor, Tensor]:
    from torch.nn.attention import flex_attention as module
    if hasattr(module, 'AuxRequest'):  # torch 2.9 and newer
        out, aux = module.flex_attention(
            query,
            key,
            value,
            score_mod,
            block_mask,
            scale,
            return_aux=module.AuxRequest(lse=True))
        return out, aux.lse
    return module.flex_attention(
        query, key, value, score_mod, block_mask, scale, return_lse=True)


def _without_lse(query: Tensor, key: Tensor, value: Tensor,
                 score_mod: Callable, block_mask,
                 scale: float) -> Tuple[Tensor, None]:
    from torch.nn.attention.flex_attention import flex_attention
    return flex_attention(query, key, value, score_mod, block_mask,
                          scale), None


@lru_cache(maxsize=None)
def _compiled(call: Callable) -> Callable:
    # A graph break would fall back to the dense form unnoticed.
    return torch.compile(call, dynamic=False, fullgraph=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable,
            block_mask, scale: float,
            return_lse: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """``[B, heads, rows or columns, head_dim]`` -> output and lse."""
    args = (query, key, value, score_mod, block_mask, scale)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in args[:3])
    # Compiled, a CPU has neither gradients nor lse, and no device float64.
    on_cpu = query.device.type == 'cpu'
    if query.dtype == torch.float64 or on_cpu and (grad or return_lse):
        return _dense(*args)
    call = _with_lse if return_lse else _without_lse
    with torch._dynamo.config.patch(cache_size_limit=_MAX_KERNELS):
        return _compiled(call)(*args)


def _head_dim(dim: int, device: torch.device) -> int:
    """Channels that the kernel takes: on a GPU a power of two from 16 on."""
    return dim if device.type == 'cpu' else max(16, 1 <<
                                                (dim - 1).bit_length())


@torch.compiler.disable
def flex(query: Tensor,
         key: Tensor,
         value: Tensor,
         key_summaries: Tensor,
         value_summaries: Tensor,
         mass: Tensor,
         key_mask: Optional[Tensor],
         hierarchy: Hierarchy,
         use_mass: bool,
         scale: float,
         return_lse: bool = True) -> Tuple[Tensor, Optional[Tensor]]:
    """One softmax over near tokens and far summaries, by flex_attention.

    Differentiable by autograd. On a GPU the kernel is compiled once for each
    geometry. On a CPU, and for float64 everywhere, memory is quadratic,
    except for inference without lse, which is compiled there too.

    Args:
        query, key, value: ``[B, *grid, heads, head_dim]``, floating point.
        key_summaries, value_summaries: ``[B, M_total, heads, head_dim]``,
            in the dtype of ``query``.
        mass: int64 ``[B or 1, M_total]``, real tokens of each summary.
        key_mask: bool ``[B, *grid]``, True = real, or None. Masked keys and
            summaries of mass 0 may hold NaN.
        hierarchy: the geometry; its levels are those of the summaries.
        use_mass: add log(mass) to a summary's logit.
        scale: factor of the logits.
        return_lse: whether the log-sum-exp is wanted.

    Returns:
        Output like ``query``, and lse ``[B, *grid, heads]`` in float32
        (float64 for float64), or None without ``return_lse``. A query
        without any real key gets 0 and -inf.

    Raises:
        ImportError: before torch 2.5.
        RuntimeError: from the compiler, beyond 64 geometries in a process.
    """
    if not query.shape[0]:  # no kernel to run, but all stay in the graph
        others = (key, value, key_summaries, value_summaries)
        out = query + sum(x.sum() for x in others)
        lse = out.sum(-1, dtype=accumulation_dtype(query.dtype))
        return out, lse if return_lse else None
    plan = layout(hierarchy, query.device)
    count, dim = hierarchy.num_tokens, query.shape[-1]
    bias = _bias(query, mass, key_mask, use_mass)
    absent = (bias == -torch.inf)[..., None, None]
    extra = _head_dim(dim, query.device) - dim

    def pad_heads(x: Tensor) -> Tensor:
        # [B, n, heads, head_dim] -> [B, heads, n, padded]
        return (F.pad(x, (0, extra)) if extra else x).transpose(1, 2)

    def keys(tokens: Tensor, summaries: Tensor) -> Tensor:
        x = torch.cat([tokens.flatten(1, hierarchy.ndim), summaries], dim=1)
        # What is absent may hold anything, even NaN.
        x = x.masked_fill(absent, 0)
        return pad_heads(_Reorder.apply(x, plan.keys, plan.key_places))

    rows = _Reorder.apply(
        query.flatten(1, hierarchy.ndim), plan.queries, plan.query_places)
    score_mod = _score_mod(bias.index_select(1, plan.keys))
    # Inputs come in the dtype that is wanted: autocast must not change it.
    with torch.autocast(query.device.type, enabled=False):
        out, lse = _attend(
            pad_heads(rows), keys(key, key_summaries),
            keys(value, value_summaries), score_mod, plan.block_mask, scale,
            return_lse)

    def restore(x: Tensor) -> Tensor:
        # Padding goes first, so that its gradient is zero.
        x = x.transpose(1, 2)[:, :count]
        x = _Reorder.apply(x, plan.query_places, plan.queries[:count])
        return x.unflatten(1, hierarchy.shape)

    out = restore(out[..., :dim])
    if lse is not None:
        # What has no key has no gradient, whatever arrives.
        lse = restore(lse.masked_fill(lse == -torch.inf, -torch.inf))
    return out, lse


def _bias(query: Tensor, mass: Tensor, key_mask: Optional[Tensor],
          use_mass: bool) -> Tensor:
    """What is added to the logits, ``[B or 1, N + M_total]``.

    log(mass) for summaries if wanted, 0 for tokens, -inf for what is absent.
    """
    if key_mask is None:
        tokens = mass.new_ones((mass.shape[0], query[0, ..., 0, 0].numel()))
    else:
        tokens = key_mask.flatten(1).to(mass.dtype)
    batch = max(tokens.shape[0], mass.shape[0])
    weight = torch.cat([tokens.expand(batch, -1),
                        mass.expand(batch, -1)],
                       dim=1)
    if not use_mass:
        weight = weight.clamp(max=1)
    return weight.to(accumulation_dtype(query.dtype)).log()
