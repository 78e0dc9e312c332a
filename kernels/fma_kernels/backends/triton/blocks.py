"""What kernels do with a block of queries and a block of keys.

Logits are in base 2: ``scale`` is positive and holds log2(e), biases are
log2(mass). Rows of tokens are fetched by coordinates, whatever the strides.
"""
import triton
import triton.language as tl

from .dropout import kept


@triton.jit
def token_offset(y, x, stride_y, stride_x):
    """int64 offsets: a tensor may hold more than 2 ** 31 elements."""
    return y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x


@triton.jit
def load_rows(rows, valid, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
              MASKED: tl.constexpr):
    """Rows of channels at pointers ``[R]`` -> ``[R, BLOCK_D]``, 0 if not
    valid."""
    channel = tl.arange(0, BLOCK_D)
    places = rows[:, None] + channel[None, :]
    if MASKED:
        if DIM == BLOCK_D:
            return tl.load(places, mask=valid[:, None], other=0.0)
        return tl.load(
            places, mask=valid[:, None] & (channel[None, :] < DIM), other=0.0)
    if DIM == BLOCK_D:
        return tl.load(places)
    return tl.load(places, mask=channel[None, :] < DIM, other=0.0)


@triton.jit
def store_rows(rows, x, valid, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of :func:`load_rows`, in the dtype of the target."""
    channel = tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (channel[None, :] < DIM)
    tl.store(
        rows[:, None] + channel[None, :],
        x.to(rows.dtype.element_ty),
        mask=mask)


@triton.jit
def local_offset(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Offsets within a box of tokens: 32 bits where they are enough."""
    if WIDE:  # one return: both branches are typed
        offset = token_offset(y, x, stride_y, stride_x)
    else:
        offset = y * stride_y + x * stride_x
    return offset


@triton.jit
def load_summaries(key, value, bias, found, stride, DIM: tl.constexpr,
                   BLOCK_D: tl.constexpr):
    """Keys, values and bias of packed summaries ``found``, -1 for none.

    A bias of -inf says that nothing is there: it is not read, since it may
    hold anything, even NaN.
    """
    weight = tl.load(bias + found, mask=found >= 0, other=float('-inf'))
    real = weight > float('-inf')
    place = found.to(tl.int64) * stride
    k = load_rows(key + place, real, DIM, BLOCK_D, True)
    v = load_rows(value + place, real, DIM, BLOCK_D, True)
    return k, v, weight


@triton.jit
def product(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """``a @ b`` in float32. UPCAST: the interpreter has no bfloat16 dot."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def attend(q, k, v, bias, seen, row, key, threshold, keep_scale, scale,
           row_max, row_sum, out, BIASED: tl.constexpr, HIDES: tl.constexpr,
           DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
           UPCAST: tl.constexpr):
    """One step of the online softmax.

    Args:
        q, k, v: ``[M, D]``, ``[N, D]``, ``[N, D]``.
        bias: ``[N]``, used where BIASED.
        seen: bool, broadcasts to ``[M, N]``; used where HIDES.
        row, key: states ``[M]`` and ``[N]`` that dropout hashes.
        row_max, row_sum, out: ``[M]``, ``[M]``, ``[M, D]`` so far.

    Returns:
        The last three after this block.
    """
    logits = product(q, tl.trans(k), PRECISION, UPCAST)
    if BIASED:
        logits = logits * scale + bias[None, :]
    if HIDES:
        logits = tl.where(seen, logits, float('-inf'))
    # Without a bias, the scale waits for the exponential's multiply-add.
    late = 1.0 if BIASED else scale
    new_max = tl.maximum(row_max, tl.max(logits, 1) * late)
    # A row that has seen no key yet must not become NaN.
    pivot = tl.where(new_max == float('-inf'), 0.0, new_max)
    weight = tl.exp2(logits * late - pivot[:, None])
    fade = tl.exp2(row_max - pivot)
    row_sum = row_sum * fade + tl.sum(weight, 1)
    if DROPOUT:
        keep = kept(row[:, None], key[None, :], threshold)
        weight = tl.where(keep, weight * keep_scale, 0.0)
    out = out * fade[:, None] + product(
        weight.to(v.dtype), v, PRECISION, UPCAST)
    return new_max, row_sum, out


@triton.jit
def query_slopes(q, k, v, bias, seen, row, key, threshold, keep_scale, scale,
                 grad, lse, delta, total, BIASED: tl.constexpr,
                 HIDES: tl.constexpr, DROPOUT: tl.constexpr,
                 PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Adds what a block of keys gives to the gradient of its queries.

    As :func:`attend`, with ``grad [M, D]`` of the output, ``lse [M]`` in
    base 2 (inf for a query to leave out) and ``delta [M]``.
    """
    logits = product(q, tl.trans(k), PRECISION, UPCAST) * scale
    if BIASED:
        logits += bias[None, :]
    weight = tl.exp2(logits - lse[:, None])
    if HIDES:
        weight = tl.where(seen, weight, 0.0)
    slope = product(grad, tl.trans(v), PRECISION, UPCAST)
    if DROPOUT:
        keep = kept(row[:, None], key[None, :], threshold)
        slope = tl.where(keep, slope * keep_scale, 0.0)
    slope = weight * (slope - delta[:, None])
    return total + product(slope.to(k.dtype), k, PRECISION, UPCAST)


@triton.jit
def key_slopes(k, v, bias, seen, q, grad, lse, delta, key, row, threshold,
               keep_scale, scale, total_k, total_v, BIASED: tl.constexpr,
               HIDES: tl.constexpr, DROPOUT: tl.constexpr,
               PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Adds what a block of queries gives to the gradients of keys, values.

    Everything is transposed, ``[keys, queries]``, so that both sums are
    plain products: ``bias`` ``[N]``, ``seen`` ``[N, M]``.
    """
    logits = product(k, tl.trans(q), PRECISION, UPCAST) * scale
    if BIASED:
        logits += bias[:, None]
    weight = tl.exp2(logits - lse[None, :])
    if HIDES:
        weight = tl.where(seen, weight, 0.0)
    slope = product(v, tl.trans(grad), PRECISION, UPCAST)
    dropped = weight
    if DROPOUT:
        keep = kept(key[:, None], row[None, :], threshold)
        dropped = tl.where(keep, weight * keep_scale, 0.0)
        slope = tl.where(keep, slope * keep_scale, 0.0)
    total_v += product(dropped.to(grad.dtype), grad, PRECISION, UPCAST)
    slope = weight * (slope - delta[None, :])
    total_k += product(slope.to(q.dtype), q, PRECISION, UPCAST)
    return total_k, total_v
