"""Launch configurations: defaults by shape and device, and their neighbours.

First use takes a default and is fast. With ``FMA_AUTOTUNE=1`` in the
environment, Triton times the neighbours once per shape and keeps the choice
on disk, where its version can.
"""
import inspect
import os
from functools import lru_cache
from typing import Dict, List

import torch
import triton

from .plan import Plan

Config = Dict[str, int]

# Bytes of shared memory for one program, by compute capability (CUDA C++
# programming guide, "Technical specifications per compute capability").
SHARED_MEMORY = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    120: 99 << 10,
    121: 99 << 10,
}


def capability(device: torch.device) -> int:
    """80 for sm_80; that of a large GPU for the interpreter on a CPU."""
    if device.type != 'cuda':
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _power(size: int, low: int, high: int) -> int:
    """The power of two that holds ``size``, within bounds."""
    return min(max(triton.next_power_of_2(size), low), high)


def _stages(most: int, kept: int, passing: int, head_dim: int, itemsize: int,
            sm: int) -> int:
    """Steps of a loop whose loads may be in flight: what memory allows.

    Args:
        most: stages wanted.
        kept, passing: rows of channels that stay, and that each step loads.
        sm: compute capability; copies are asynchronous from sm_80 on.
    """
    if sm < 80:
        return 1
    row = triton.next_power_of_2(head_dim) * itemsize
    # Half of the memory, so that two programs share a multiprocessor.
    free = SHARED_MEMORY.get(sm, min(SHARED_MEMORY.values())) // 2
    return max(min(most, (free - kept * row) // (passing * row)), 1)


def query_config(plan: Plan, far: int, head_dim: int, itemsize: int, sm: int,
                 backward: bool) -> Config:
    """Blocks of queries (M), near keys (N) and ``far`` summaries (F)."""
    if itemsize == 4:  # float32: IEEE products live in registers
        most, columns = 32, 32
    else:
        most = 64 if backward or head_dim > 64 or sm < 80 else 128
        columns = 32 if head_dim > 64 else 64
    rows = _power(plan.tile_tokens, 16, most)
    columns = _power(plan.window[0] * plan.window[1], 16, columns)
    return dict(
        BLOCK_M=rows,
        BLOCK_N=columns,
        BLOCK_F=far,
        num_warps=8 if rows == 128 else 4,
        num_stages=_stages(3, rows * (2 if backward else 1), 2 * columns,
                           head_dim, itemsize, sm))


def key_config(plan: Plan, head_dim: int, itemsize: int, sm: int) -> Config:
    """Blocks of near keys (N), kept, and of the queries (M) that pass by."""
    most = 32 if itemsize == 4 else 64
    keys = _power(plan.tile_tokens, 16, most)
    queries = _power(plan.window[0] * plan.window[1], 16,
                     most if head_dim <= 64 else most // 2)
    return dict(
        BLOCK_N=keys,
        BLOCK_M=queries,
        num_warps=4,
        num_stages=_stages(2, 2 * keys, 2 * queries, head_dim, itemsize, sm))


def summary_config(plan: Plan, head_dim: int, itemsize: int,
                   sm: int) -> Config:
    """Blocks of summaries (N), kept, and of queries (M) of a chunk."""
    listed = plan.parts * (32 if plan.ndim == 2 else 4)
    most = 32 if itemsize == 4 or head_dim > 64 else 64
    summaries = _power(listed, 16, 32)
    queries = _power(4 * plan.cell**plan.ndim, 16, most)
    return dict(
        BLOCK_N=summaries,
        BLOCK_M=queries,
        # A warp takes 16 rows: more would repeat the work.
        num_warps=summaries // 16,
        num_stages=_stages(2, 2 * summaries, 2 * queries, head_dim, itemsize,
                           sm))


def neighbours(config: Config) -> List[triton.Config]:
    """The default and what is worth trying beside it: warps and stages."""
    blocks = {
        name: size
        for name, size in config.items() if name.startswith('BLOCK')
    }
    stages, warps = config['num_stages'], config['num_warps']
    return [
        triton.Config(blocks, num_warps=w, num_stages=s)
        for s in sorted({max(stages - 1, 1), stages, stages + 1})
        for w in sorted({max(warps // 2, 1), warps,
                         min(2 * warps, 8)})
    ]


def autotunes() -> bool:
    """Whether the user asked for a search (``FMA_AUTOTUNE=1``)."""
    return os.environ.get('FMA_AUTOTUNE', '0') not in ('', '0')


@lru_cache(maxsize=64)
def tuned(kernel, config: tuple):
    """A kernel that searches around a default, ``tuple(config.items())``."""
    options = {}
    if 'cache_results' in inspect.signature(triton.autotune).parameters:
        options['cache_results'] = True
    search = triton.autotune(
        configs=neighbours(dict(config)),
        key=['height', 'width', 'heads', 'DIM'],
        **options)
    return search(kernel)
