"""The decision of :mod:`fma_kernels.dropout`, inside a kernel."""
import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """The 32-bit finaliser of MurmurHash3 (public domain)."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x85EBCA6B, tl.uint32)
    x = x ^ (x >> 13)
    x = x * tl.full([], 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def row_state(seed, row):
    """int64 rows (image, head, query) -> uint32 state."""
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    state = _mix(row.to(tl.uint32) ^ low)
    return _mix(state ^ (row >> 32).to(tl.uint32) ^ high)


@triton.jit
def key_state(key):
    """Tokens, or the number of tokens + packed summary -> uint32 state."""
    return _mix(key.to(tl.uint32) + tl.full([], 0x9E3779B9, tl.uint32))


@triton.jit
def kept(row, key, threshold):
    """Which weights survive; ``row`` and ``key`` broadcast."""
    return _mix(row ^ key) >= tl.cast(threshold, tl.uint32)
