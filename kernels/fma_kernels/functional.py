"""The public ops: validate, choose a backend once, call it."""
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from . import checks
from .dropout import draw_seed
from .geometry import Hierarchy
from .naive import naive
from .ops import attention, pool
from .pooled import far_field, near_field
from .pooling import accumulation_dtype, pack, packed_mass, unpack

Output = Union[Tensor, Tuple[Tensor, Tensor]]


def explain_backend(query: Tensor,
                    *,
                    near_bias: Optional[Tensor] = None,
                    far_bias: Optional[Sequence[Tensor]] = None,
                    dropout_p: float = 0.0,
                    pool_queries: bool = False) -> str:
    """Says which backend ``'auto'`` takes for such arguments, and why.

    Args:
        query: as :func:`fma1d` and :func:`fma2d` take it; its device, dtype
            and head_dim count.
        near_bias, far_bias, dropout_p, pool_queries: as the ops take them.

    Returns:
        One line per backend that was considered, the chosen one last.
    """
    request = checks.Request.of(query, near_bias, far_bias, dropout_p,
                                pool_queries)
    lines = []
    for name in checks.AUTO:
        reason = checks.refusal(name, request)
        lines.append(f'{name}: {reason or "chosen"}')
        if reason is None:
            break
    return '\n'.join(lines)


def _choose_backend(backend: str, request: checks.Request) -> str:
    if backend == 'auto':
        return next(
            name for name in checks.AUTO
            if checks.refusal(name, request) is None)
    checks.can_run(backend, request, raise_error=True)
    return backend


def _under_autocast(tensors: List[Optional[Tensor]]) -> List[Tensor]:
    """Inside ``torch.autocast``, inputs take its dtype as matmuls' do."""
    device = tensors[0].device.type if isinstance(tensors[0],
                                                  Tensor) else 'cpu'
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point()
        and x.dtype != torch.float64 else x for x in tensors
    ]


def _fma(ndim: int, query: Tensor, key: Tensor, value: Tensor, *,
         cell_size: int, num_levels: Optional[int], rank: int,
         key_summaries: Optional[List[Tensor]],
         value_summaries: Optional[List[Tensor]], causal: bool, mass: bool,
         scale: Optional[float], key_mask: Optional[Tensor],
         pool_queries: bool, query_summaries: Optional[List[Tensor]],
         near_bias: Optional[Tensor], far_bias: Optional[List[Tensor]],
         dropout_p: float, dropout_seed: Optional[int], backend: str,
         return_lse: bool) -> Output:
    query, key, value = _under_autocast([query, key, value])
    checks.check_qkv(query, key, value, ndim)
    checks.check_options(
        scale,
        dropout_p,
        dropout_seed,
        causal=causal,
        mass=mass,
        pool_queries=pool_queries,
        return_lse=return_lse)
    checks.check_pooled_queries(pool_queries, query_summaries, causal)
    checks.check_key_mask(key_mask, query)
    geometry = Hierarchy(
        tuple(query.shape[1:-2]), cell_size, num_levels, rank, causal)
    query_summaries, key_summaries, value_summaries = (
        unpack(x, geometry) if isinstance(x, Tensor) and x.dim() == 4 else x
        for x in (query_summaries, key_summaries, value_summaries))
    for name, levels in (('query_summaries', query_summaries),
                         ('key_summaries', key_summaries), ('value_summaries',
                                                            value_summaries)):
        checks.check_summaries(name, levels, query, geometry)
    checks.check_biases(near_bias, far_bias, query, geometry)
    backend = _choose_backend(
        backend,
        checks.Request.of(query, near_bias, far_bias, dropout_p, pool_queries))

    scale = float(query.shape[-1]**-0.5 if scale is None else scale)
    if key_mask is not None:
        # A masked token still asks, but what is not a number asks nothing.
        query = torch.where(key_mask[..., None, None], query,
                            query.nan_to_num(0.0, 0.0, 0.0))
    if dropout_seed is not None:
        # One number for every backend: the core op holds it in an int64.
        dropout_seed %= 2**63
    if backend == 'naive':
        if dropout_p > 0 and dropout_seed is None:
            dropout_seed = draw_seed()
        out, lse = naive(query, key, value, geometry, key_summaries,
                         value_summaries, mass, scale, key_mask, near_bias,
                         far_bias, dropout_p, dropout_seed, pool_queries,
                         query_summaries)
    else:
        out, lse = _packed(backend, query, key, value, key_summaries,
                           value_summaries, mass, scale, key_mask,
                           pool_queries, query_summaries, near_bias, far_bias,
                           dropout_p, dropout_seed, geometry, return_lse)
    return (out, lse) if return_lse else out


def _packed(backend: str, query: Tensor, key: Tensor, value: Tensor,
            key_summaries: Optional[List[Tensor]],
            value_summaries: Optional[List[Tensor]], mass: bool, scale: float,
            key_mask: Optional[Tensor], pool_queries: bool,
            query_summaries: Optional[List[Tensor]],
            near_bias: Optional[Tensor], far_bias: Optional[List[Tensor]],
            dropout_p: float, dropout_seed: Optional[int], geometry: Hierarchy,
            return_lse: bool) -> Tuple[Tensor, Tensor]:
    """Pools what is not given, packs the levels and calls the core ops."""
    batch, (heads, dim) = query.shape[0], query.shape[-2:]
    geometry = geometry.trimmed()
    sizes = geometry.cell_size, geometry.num_levels, geometry.rank
    # flex_attention differentiates itself, it has no pooling of its own.
    core = 'torch' if backend == 'flex' else backend

    def needed(levels: List[Tensor]) -> List[Tensor]:
        # What is given beyond the needed levels is attended by nobody: it
        # stays in the graph, with a gradient of zero.
        count = geometry.num_levels
        return [*levels[:count], *(x[:, :0] for x in levels[count:])]

    def packed(x: Tensor, levels: Optional[List[Tensor]]) -> Tensor:
        if levels is None and geometry.num_levels:
            return pool(x, key_mask, *sizes, core)
        if not levels:
            return x.new_zeros((batch, 0, heads, dim))
        return pack(needed(levels), geometry.ndim).to(x.dtype)

    summaries = packed(key, key_summaries), packed(value, value_summaries)
    if backend == 'flex':
        from .backends.flex import flex
        mass_packed = packed_mass(geometry, key_mask, query.device)
        return flex(query, key, value, *summaries, mass_packed, key_mask,
                    geometry, mass, scale, return_lse)
    seed = None
    if dropout_p > 0:
        # A tensor, so that a compiled graph draws anew at every call.
        device = query.device
        seed = (
            torch.randint(0, 2**31 - 1, (), device=device)
            if dropout_seed is None else torch.full(
                (), dropout_seed, dtype=torch.int64, device=device))
    options = scale, float(dropout_p), backend
    if pool_queries and geometry.num_levels:
        out, lse = far_field(
            packed(query, query_summaries), *summaries, key_mask, seed,
            list(geometry.shape), *sizes, mass, *options)
        leaves = geometry.level_sizes[0]
        return near_field(query, key, value, out[:, :leaves], lse[:, :leaves],
                          key_mask, seed, geometry.cell_size, geometry.rank,
                          *options)
    if query_summaries:
        # Nobody is far: adds the sum of nothing, which keeps them in the
        # graph.
        query = query + packed(query, query_summaries).sum()
    far = None
    if far_bias:
        # [heads, levels, parts, 7 ** d]
        acc = accumulation_dtype(query.dtype)
        far = torch.cat(needed([x[:, None].to(acc) for x in far_bias]), dim=1)
    return attention(query, key, value, *summaries, key_mask, seed, near_bias,
                     far, *sizes, geometry.causal, mass, *options)


def fma1d(query: Tensor,
          key: Tensor,
          value: Tensor,
          *,
          cell_size: int,
          num_levels: Optional[int] = None,
          rank: int = 1,
          key_summaries: Optional[List[Tensor]] = None,
          value_summaries: Optional[List[Tensor]] = None,
          causal: bool = False,
          mass: bool = True,
          scale: Optional[float] = None,
          key_mask: Optional[Tensor] = None,
          pool_queries: bool = False,
          query_summaries: Optional[List[Tensor]] = None,
          near_bias: Optional[Tensor] = None,
          far_bias: Optional[List[Tensor]] = None,
          dropout_p: float = 0.0,
          dropout_seed: Optional[int] = None,
          backend: str = 'auto',
          return_lse: bool = False) -> Output:
    """Fast Multipole Attention over a sequence (arXiv 2310.11960).

    Every query attends to near tokens one by one and to all others through
    summaries that grow coarser with distance, under one softmax.

    Args:
        query, key, value: ``[B, N, heads, head_dim]``, floating point; any
            strides as long as the last axis is contiguous.
        cell_size: tokens of a leaf cell (the near field is 3 cells).
        num_levels: far-field levels; None chooses by the length, 0 is full
            attention.
        rank: summaries per cell, the paper's p; divides ``cell_size``.
        key_summaries, value_summaries: per level ``[B, cells, rank, heads,
            head_dim]``; the average over real tokens by default.
        causal: query i sees tokens j <= i and cells strictly to the left.
            As in any masked product, 0 times a later NaN or Inf is NaN.
        mass: add log(number of tokens) to a summary's logit.
        scale: factor of the logits, ``head_dim ** -0.5`` by default.
        key_mask: bool ``[B, N]``, True = real. Masked keys and values may
            hold NaN; a masked query that is not finite counts as 0.
        pool_queries: the linear variant, O(n) in all: at each level, a query
            asks with the mean query over the real tokens of its own
            sub-cell. Not with ``causal``.
        query_summaries: with ``pool_queries``, what asks instead of that
            mean; shaped as ``key_summaries``.
        near_bias: ``[heads, 4 * cell_size - 1]``, by token offset, key minus
            query; any floating dtype. Added to logits, not scaled.
        far_bias: per level ``[heads, rank, 7]``, by cell offset clamped to
            +-3. Biases run on 'torch' and 'naive', with ``pool_queries`` on
            'naive' alone.
        dropout_p: probability that a normalised weight is dropped; pooled
            queries drop one for all tokens of a sub-cell.
        dropout_seed: same seed, same decisions, in every backend; drawn
            from PyTorch's generator by default.
        backend: 'auto', 'triton', 'torch', 'flex' or 'naive';
            :func:`explain_backend`.
        return_lse: also return the log-sum-exp.

    Returns:
        ``[B, N, heads, head_dim]`` in the dtype of ``query``; with
        ``return_lse`` also ``[B, N, heads]`` in float32 (float64 for
        float64). A query without any real key gets 0 and -inf.
        Differentiable once, not twice.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what
            is allowed.
    """
    return _fma(
        1,
        query,
        key,
        value,
        cell_size=cell_size,
        num_levels=num_levels,
        rank=rank,
        key_summaries=key_summaries,
        value_summaries=value_summaries,
        causal=causal,
        mass=mass,
        scale=scale,
        key_mask=key_mask,
        pool_queries=pool_queries,
        query_summaries=query_summaries,
        near_bias=near_bias,
        far_bias=far_bias,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        backend=backend,
        return_lse=return_lse)


def fma2d(query: Tensor,
          key: Tensor,
          value: Tensor,
          *,
          cell_size: int,
          num_levels: Optional[int] = None,
          rank: int = 1,
          key_summaries: Optional[List[Tensor]] = None,
          value_summaries: Optional[List[Tensor]] = None,
          mass: bool = True,
          scale: Optional[float] = None,
          key_mask: Optional[Tensor] = None,
          pool_queries: bool = False,
          query_summaries: Optional[List[Tensor]] = None,
          near_bias: Optional[Tensor] = None,
          far_bias: Optional[List[Tensor]] = None,
          dropout_p: float = 0.0,
          dropout_seed: Optional[int] = None,
          backend: str = 'auto',
          return_lse: bool = False) -> Output:
    """Fast Multipole Attention over an image (arXiv 2310.11960).

    The same as :func:`fma1d` on a grid, without ``causal``.

    Args:
        query, key, value: ``[B, H, W, heads, head_dim]``, any H and W.
        cell_size: side of a leaf cell in tokens (the near field is 3 x 3
            cells).
        num_levels: see :func:`fma1d`.
        rank: sub-cells per cell and axis: ``rank ** 2`` summaries a cell.
        key_summaries, value_summaries: per level ``[B, *grid_l, rank ** 2,
            heads, head_dim]``; the average over real tokens by default.
        mass, scale: see :func:`fma1d`.
        key_mask: bool ``[B, H, W]``, True = real.
        pool_queries, query_summaries: see :func:`fma1d`.
        near_bias: ``[heads, (4 * cell_size - 1) ** 2]``, offsets row by row;
            see :func:`fma1d`.
        far_bias: per level ``[heads, rank ** 2, 49]``.
        dropout_p, dropout_seed, backend, return_lse: see :func:`fma1d`.

    Returns:
        ``[B, H, W, heads, head_dim]``; with ``return_lse`` also
        ``[B, H, W, heads]``.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what
            is allowed.
    """
    return _fma(
        2,
        query,
        key,
        value,
        cell_size=cell_size,
        num_levels=num_levels,
        rank=rank,
        key_summaries=key_summaries,
        value_summaries=value_summaries,
        causal=False,
        mass=mass,
        scale=scale,
        key_mask=key_mask,
        pool_queries=pool_queries,
        query_summaries=query_summaries,
        near_bias=near_bias,
        far_bias=far_bias,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        backend=backend,
        return_lse=return_lse)
