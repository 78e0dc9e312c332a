"""Launch configurations: defaults by shape and device, and their neighbours.

First use takes a default and is fast. With ``FMA_AUTOTUNE=1`` in the
environment, Triton times the neighbours once per shape and keeps the choice
on disk, where its version can.
"""
import inspect
import os
from functools import lru_cache
from math import prod
from typing import Dict, List, NamedTuple

import torch
import triton

from .plan import Plan

Config = Dict[str, int]

# Bounds on a thread's registers, to be had or not: without one, the assembler
# spills a few for a higher occupancy. What is left unbounded does not spill.
MOST_REGISTERS = 255
FEW_REGISTERS = 128

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


class Work(NamedTuple):
    """What a launch configuration depends on.

    Attributes:
        plan: the geometry.
        dim: channels of a head, as a power of two.
        wide: float32, whose IEEE products take no matrix units.
        sm: compute capability, e.g. 90.
        dropout: whether weights are hashed, which takes registers.
    """
    plan: Plan
    dim: int
    wide: bool
    sm: int
    dropout: bool

    def stages(self, most: int, kept: int, passing: int) -> int:
        """Steps of a loop whose loads may be in flight: what memory allows.

        Args:
            most: stages wanted.
            kept, passing: rows of channels that stay, and that a step loads.
        """
        if self.sm < 80:  # copies are not asynchronous
            return 1
        row = self.dim * (4 if self.wide else 2)
        # Half of the memory, so that two programs share a multiprocessor.
        free = SHARED_MEMORY.get(self.sm, min(SHARED_MEMORY.values())) // 2
        return max(min(most, (free - kept * row) // (passing * row)), 1)


# With these block sizes the assembler spills no register, from sm_80 to
# sm_100: tests/test_kernels/test_triton_resources.py.
def query_config(work: Work, far: int, backward: bool) -> Config:
    """Blocks of queries (M), near keys (N) and summaries (F, at most far)."""
    large = work.dim > 64
    if work.wide:
        rows, columns, most = 16 if large else 32, 16, 2 if large else 3
        far = min(far, 16)
    else:
        tall = not (backward or large or work.sm < 80)
        short = large or work.sm < 90 and (work.plan.grouped or backward)
        rows, columns, most = 128 if tall else 64, 32 if short else 64, 3
        far = min(far, 64 if work.sm >= 90 and not large else 32)
    rows = _power(work.plan.tile_tokens, 16, rows)
    columns = _power(prod(work.plan.window), 16, columns)
    many = rows == 128 or large and (work.wide or work.sm < 90)
    kept = 2 * rows if backward else rows
    return dict(
        BLOCK_M=rows,
        BLOCK_N=columns,
        BLOCK_F=far,
        num_warps=8 if many else 4,
        num_stages=work.stages(most, kept, 2 * columns),
        maxnreg=MOST_REGISTERS)


def key_config(work: Work) -> Config:
    """Blocks of near keys (N), kept, and of the queries (M) that pass by."""
    large = work.dim > 64
    if work.wide:
        keys, queries = 32, 16 if large else 32
    else:
        short = work.dim > 32 and (large or work.sm < 90 or work.dropout)
        keys, queries = 64, 32 if short else 64
    keys = _power(work.plan.tile_tokens, 16, keys)
    queries = _power(prod(work.plan.window), 16, queries)
    return dict(
        BLOCK_N=keys,
        BLOCK_M=queries,
        num_warps=8 if large and not work.wide else 4,
        num_stages=work.stages(2, 2 * keys, 2 * queries),
        maxnreg=MOST_REGISTERS if work.sm >= 90 and not work.wide else None)


def summary_config(work: Work) -> Config:
    """Blocks of summaries (N), kept, and of queries (M) of a chunk."""
    large, ndim = work.dim > 64, work.plan.ndim
    listed = work.plan.parts * (32 if ndim == 2 else 4)
    summaries = _power(listed, 16, 16 if work.wide and large else 32)
    queries = 64 if work.dim <= 32 and not work.dropout else 32
    # A warp takes 16 rows: more would repeat work, but for the registers.
    warps = summaries // 16
    if work.wide:
        warps, queries = 4, 16
    elif large:
        warps, queries = 2, 16 if summaries == 32 else 32
    elif work.dropout and work.dim > 32:
        warps = 2
    queries = _power(4 * work.plan.cell**ndim, 16, queries)
    return dict(
        BLOCK_N=summaries,
        BLOCK_M=queries,
        num_warps=warps,
        num_stages=work.stages(1 if work.wide else 2, 2 * summaries,
                               2 * queries))


def subcell_config(work: Work, tile: int) -> Config:
    """Blocks of pooled queries (M), and of the summaries that pass (N).

    Args:
        work: ``wide`` for IEEE products; operands are float32 in any case.
        tile: summaries of a tile.
    """
    return dict(
        BLOCK_M=_power(tile, 16, 32),
        BLOCK_N=16 if work.wide else 32,
        num_warps=4,
        num_stages=1 if work.sm < 80 else 2,
        maxnreg=MOST_REGISTERS)


def subcell_key_config(work: Work, tile: int) -> Config:
    """Blocks of summaries (N), kept, and of pooled queries (M)."""
    return dict(
        BLOCK_N=_power(tile, 16, 32),
        BLOCK_M=16 if work.wide or work.dim > 64 else 32,
        num_warps=4,
        num_stages=1 if work.wide or work.sm < 80 else 2,
        maxnreg=MOST_REGISTERS)


def neighbours(config: Config) -> List[triton.Config]:
    """The default and what is worth trying beside it: warps and stages."""
    blocks = {
        name: size
        for name, size in config.items() if name.startswith('BLOCK')
    }
    stages, warps = config['num_stages'], config['num_warps']
    return [
        triton.Config(
            blocks, num_warps=w, num_stages=s, maxnreg=config.get('maxnreg'))
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
        # All that makes another kernel of it, or another load.
        key=[
            'height', 'width', 'heads', 'DIM', 'NDIM', 'CELL', 'PARTS',
            'CAUSAL', 'MASKED', 'DROPOUT', 'TOP', 'SIDE', 'BACKWARD',
            'PRECISION'
        ],
        **options)
    return search(kernel)
