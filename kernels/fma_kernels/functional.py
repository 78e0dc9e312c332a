"""The public ops: validate, choose a backend once, call it."""
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from . import checks
from .dropout import draw_seed
from .geometry import Hierarchy
from .naive import naive
from .ops import attend, pool
from .options import Inputs, Options
from .pooled import attend_pooled
from .pooling import accumulation_dtype, pack, unpack

Output = Union[Tensor, Tuple[Tensor, Tensor]]
Summaries = Union[None, Tensor, List[Tensor]]  # packed, or level by level


def explain_backend(query: Tensor,
                    *,
                    near_bias: Optional[Tensor] = None,
                    far_bias: Optional[Sequence[Tensor]] = None,
                    pool_queries: bool = False) -> str:
    """Says which backend ``'auto'`` takes for such arguments, and why.

    Args:
        query: as :func:`fma1d` and :func:`fma2d` take it; its device, dtype
            and head_dim count.
        near_bias, far_bias, pool_queries: as the ops take them.

    Returns:
        One line per backend that was considered, the chosen one last.

    Raises:
        ValueError: if an environment variable that the choice depends on
            has a value that is not allowed; so do the ops.
    """
    request = checks.Request.of(query, near_bias, far_bias, pool_queries)
    lines = []
    for name in checks.AUTO:
        reason = checks.refusal(name, request)
        lines.append(f'{name}: {reason or "chosen"}')
        if reason is None:
            break
    return '\n'.join(lines)


@dataclass
class _Call:
    """The arguments of the public ops, in their order."""
    query: Tensor
    key: Tensor
    value: Tensor
    cell_size: int
    num_levels: Optional[int]
    rank: int
    key_summaries: Summaries
    value_summaries: Summaries
    causal: bool
    mass: bool
    scale: Optional[float]
    key_mask: Optional[Tensor]
    pool_queries: bool
    query_summaries: Summaries
    near_bias: Optional[Tensor]
    far_bias: Optional[List[Tensor]]
    dropout_p: float
    dropout_seed: Optional[int]
    backend: str
    return_lse: bool

    def check(self, ndim: int) -> Hierarchy:
        """Raises what the public ops raise, or gives the geometry."""
        query = self.query
        checks.check_qkv(query, self.key, self.value, ndim)
        checks.check_options(
            query.dtype,
            self.scale,
            self.dropout_p,
            self.dropout_seed,
            causal=self.causal,
            mass=self.mass,
            pool_queries=self.pool_queries,
            return_lse=self.return_lse)
        checks.check_pooled_queries(self.pool_queries, self.query_summaries,
                                    self.causal)
        checks.check_key_mask(self.key_mask, query)
        hierarchy = Hierarchy(
            tuple(query.shape[1:-2]), self.cell_size, self.num_levels,
            self.rank, self.causal)
        for name, x in (('query_summaries', self.query_summaries),
                        ('key_summaries', self.key_summaries),
                        ('value_summaries', self.value_summaries)):
            checks.check_summaries(name, x, query, hierarchy)
        checks.check_biases(self.near_bias, self.far_bias, query, hierarchy)
        return hierarchy

    def choose_backend(self) -> str:
        """A name of ``checks.REFUSALS``."""
        request = checks.Request.of(self.query, self.near_bias, self.far_bias,
                                    self.pool_queries)
        if self.backend == 'auto':
            return next(
                name for name in checks.AUTO
                if checks.refusal(name, request) is None)
        checks.can_run(self.backend, request, raise_error=True)
        return self.backend


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


@lru_cache(maxsize=None)
def _warn_of_trace() -> None:
    """Once a process, however many layers are traced."""
    warnings.warn(
        'a trace of Fast Multipole Attention is right at the traced size of '
        'its input alone; torch.export.export keeps sizes free',
        stacklevel=4)


def _fma(ndim: int, call: _Call) -> Output:
    if torch.jit.is_tracing():
        _warn_of_trace()
    call.query, call.key, call.value = _under_autocast(
        [call.query, call.key, call.value])
    hierarchy = call.check(ndim)
    query, mask = call.query, call.key_mask
    scale = query.shape[-1]**-0.5 if call.scale is None else call.scale
    options = Options(call.choose_backend(), call.mass, float(scale),
                      float(call.dropout_p))
    if mask is not None:
        # A masked token still asks, but what is not a number asks nothing.
        call.query = torch.where(mask[..., None, None], query,
                                 query.nan_to_num(0.0, 0.0, 0.0))
    if call.dropout_seed is not None:
        # One number for every backend: the core op holds it in an int64.
        call.dropout_seed %= 2**63
    run = _naive if options.backend == 'naive' else _packed
    out, lse = run(call, hierarchy, options)
    return (out, lse) if call.return_lse else out


def _naive(call: _Call, hierarchy: Hierarchy,
           options: Options) -> Tuple[Tensor, Tensor]:

    def levels(x: Summaries) -> Optional[List[Tensor]]:
        return unpack(x, hierarchy) if isinstance(x, Tensor) else x

    seed = call.dropout_seed
    if options.dropout_p > 0 and seed is None:
        seed = draw_seed()
    return naive(call.query, call.key, call.value, hierarchy,
                 levels(call.key_summaries), levels(call.value_summaries),
                 options.mass, options.scale, call.key_mask, call.near_bias,
                 call.far_bias, options.dropout_p, seed, call.pool_queries,
                 levels(call.query_summaries))


def _packed(call: _Call, hierarchy: Hierarchy,
            options: Options) -> Tuple[Tensor, Tensor]:
    """Packs the levels and calls the core ops."""
    query, mask = call.query, call.key_mask
    h = hierarchy.trimmed()

    def packed(x: Summaries) -> Optional[Tensor]:
        if not isinstance(x, Tensor):
            if not x:
                return None
            x = pack(x, h.ndim)
        # What is given beyond the needed levels is attended by nobody: it
        # stays in the graph, with a gradient of zero.
        return x[:, :h.num_summaries].to(query.dtype)

    def average(x: Tensor) -> Tensor:
        return pool(x, mask, h.cell_size, h.num_levels, h.rank,
                    options.backend)

    seed = far_bias = None
    if options.dropout_p > 0:
        # A tensor, so that a compiled graph draws anew at every call.
        device = query.device
        seed = (
            torch.randint(0, 2**31 - 1, (), device=device)
            if call.dropout_seed is None else torch.full(
                (), call.dropout_seed, dtype=torch.int64, device=device))
    if call.far_bias:
        # [heads, levels, parts, 7 ** d]
        acc = accumulation_dtype(query.dtype)
        far_bias = torch.stack([x.to(acc) for x in call.far_bias], dim=1)
        far_bias = far_bias[:, :h.num_levels]
    inputs = Inputs(query, call.key, call.value, packed(call.key_summaries),
                    packed(call.value_summaries), mask, seed, call.near_bias,
                    far_bias)
    asking = packed(call.query_summaries)
    if not call.pool_queries or not h.num_levels:
        if asking is not None:
            # Nobody is far: adds the sum of nothing, which keeps them in the
            # graph.
            inputs = Inputs(query + asking.sum(), *inputs[1:])
        return attend(inputs, h, options)
    given = asking, inputs.key_summaries, inputs.value_summaries
    asking, *summaries = (average(x) if summary is None else summary
                          for x, summary in zip(inputs[:3], given))
    return attend_pooled(
        Inputs(*inputs[:3], *summaries, mask, seed), asking, h, options)


def fma1d(query: Tensor,
          key: Tensor,
          value: Tensor,
          *,
          cell_size: int,
          num_levels: Optional[int] = None,
          rank: int = 1,
          key_summaries: Summaries = None,
          value_summaries: Summaries = None,
          causal: bool = False,
          mass: bool = True,
          scale: Optional[float] = None,
          key_mask: Optional[Tensor] = None,
          pool_queries: bool = False,
          query_summaries: Summaries = None,
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
            head_dim]``, or all levels packed in one tensor ``[B, M_total,
            heads, head_dim]``, the first level first; the average over real
            tokens by default.
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
            +-3. Biases do not run on 'triton', with ``pool_queries`` on
            'naive' alone.
        dropout_p: probability that a normalised weight is dropped; pooled
            queries drop one for all tokens of a sub-cell.
        dropout_seed: same seed, same decisions, in every backend; drawn
            from PyTorch's generator by default.
        backend: 'auto', 'triton', 'native', 'torch' or 'naive';
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
        _Call(query, key, value, cell_size, num_levels, rank, key_summaries,
              value_summaries, causal, mass, scale, key_mask, pool_queries,
              query_summaries, near_bias, far_bias, dropout_p, dropout_seed,
              backend, return_lse))


def fma2d(query: Tensor,
          key: Tensor,
          value: Tensor,
          *,
          cell_size: int,
          num_levels: Optional[int] = None,
          rank: int = 1,
          key_summaries: Summaries = None,
          value_summaries: Summaries = None,
          mass: bool = True,
          scale: Optional[float] = None,
          key_mask: Optional[Tensor] = None,
          pool_queries: bool = False,
          query_summaries: Summaries = None,
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
            heads, head_dim]``, or packed, ``[B, M_total, heads, head_dim]``;
            the average over real tokens by default.
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
        _Call(query, key, value, cell_size, num_levels, rank, key_summaries,
              value_summaries, False, mass, scale, key_mask, pool_queries,
              query_summaries, near_bias, far_bias, dropout_p, dropout_seed,
              backend, return_lse))
