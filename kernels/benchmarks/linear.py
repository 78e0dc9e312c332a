"""Pooled queries, the linear variant, on a CPU: growth, and the plain form.

    python kernels/benchmarks/linear.py --threads 2

Every number comes from one process; what is compared runs in turns, and the
JSON holds medians and quartiles. Nothing is timed before it has been checked:
against the oracle on a small ragged grid, outputs and gradients, and at the
size itself where the result is known. With queries constant on the coarsest
cells pooled queries equal the plain form, and with keys of zero every output
is the mean of the values.

``scaling`` times and weighs three things at growing sizes: the far field (the
call that the op makes of ``fma_kernels::far_field``, on summaries that are
ready), the same with the pooling of queries, keys and values, and the whole
op. ``plain`` compares the whole op with the form that pools no queries.

Large results come from fresh pages, small ones from those that the allocator
kept: a step in time where a size crosses its limit (32 MiB), due to the
system zeroing 4 KiB after 4 KiB. ``THP_MEM_ALLOC_ENABLE=1`` makes PyTorch ask
for huge pages instead, where the system has them; the script sets it unless
it is set.
"""
import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple
from unittest.mock import patch

import cpu
import cpu1d
import torch
from cpu import print_row
from cpu1d import largest_difference, ragged_length, refuse
from torch import Tensor

from fma_kernels import Hierarchy, fma1d, fma2d, functional
from fma_kernels import pooled as core
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import peak_memory, summarise, time_interleaved

RESULT = Path(__file__).parents[2] / 'benchmarks/results/linear_cpu.json'
HUGE_PAGES = 'THP_MEM_ALLOC_ENABLE'
LENGTHS = dict(scaling=tuple(2**k for k in range(14, 21)), plain=(65536, ))
SIDES = dict(scaling=(64, 128, 256, 512, 1024), plain=(256, ))
Grid = Tuple[int, ...]
Tensors = List[Tensor]


def qkv(grid: Grid, args: argparse.Namespace) -> Tensors:
    """Views of one projection, as a layer makes them."""
    if len(grid) == 1:
        return cpu1d.qkv(*grid, args)
    return cpu.qkv(grid[0], args.heads, args.dim)


def attention(tensors: Tensors,
              cell: int,
              pooled: bool = True,
              **options) -> Tensor:
    """The op under test, or the plain form."""
    op = {4: fma1d, 5: fma2d}[tensors[0].dim()]
    return op(*tensors, cell_size=cell, pool_queries=pooled, **options)


def training(tensors: Tensors, grad: Tensor, cell: int,
             pooled: bool) -> Tensors:
    """Forward and backward pass: output and gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    with torch.enable_grad():
        out = attention(leaves, cell, pooled)
        return [out, *torch.autograd.grad(out, leaves, grad)]


def far_field(tensors: Tensors, cell: int) -> Dict[str, Callable]:
    """The far field alone: the very calls that the op makes."""
    places = (functional, 'pool'), (core, 'far_field')
    ops = [getattr(*place) for place in places]
    spies = [patch.object(*place, wraps=op) for place, op in zip(places, ops)]
    with spies[0] as pool, spies[1] as far:
        attention(tensors, cell)
    pool, (far, ) = ([
        partial(op, *call.args, **call.kwargs) for call in spy.call_args_list
    ] for op, spy in zip(ops, (pool, far)))

    def with_pooling() -> tuple:
        return [call() for call in pool], far()

    return {'far field': far, 'with pooling': with_pooling}


# ----------------------------------------------------------------- checks
def coarse(x: Tensor, cell: int) -> Tensor:
    """The first token of each of the coarsest cells, in all of the cell."""
    grid = x.shape[1:-2]
    width = max(Hierarchy(tuple(grid), cell).widths, default=1)
    for axis, size in enumerate(grid, 1):
        first = torch.arange(size) // width * width
        x = x.index_select(axis, first)
    return x


def check_small(ndim: int, cell: int, args: argparse.Namespace) -> None:
    """Outputs and gradients against the oracle; raises where one is off."""
    # Two levels at least; the oracle holds tokens x keys.
    grid = [(ragged_length(cell), ), (5 * cell + 1, 4 * cell + 3)][ndim - 1]
    for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        tensors = [
            torch.randn(1, *grid, args.heads, args.dim, dtype=dtype)
            for _ in range(4)
        ]
        results = []
        for backend in ('auto', 'naive'):
            leaves = [x.detach().requires_grad_() for x in tensors[:3]]
            with torch.enable_grad():
                out = attention(leaves, cell, backend=backend)
                results.append(
                    [out, *torch.autograd.grad(out, leaves, tensors[3])])
        errors = dict(
            zip(('out', 'query', 'key', 'value'),
                map(largest_difference, *results)))
        refuse(errors, f'the op on {grid} tokens, cell {cell}, {dtype},',
               limit)


def check(tensors: Tensors, cell: int) -> Dict[str, float]:
    """Largest errors at a size itself; raises where one is not rounding."""
    query, key, value = tensors
    grid = tuple(query.shape[1:-2])
    asked = [coarse(query, cell), key, value]
    blind = [query, torch.zeros_like(key), value]
    mean = value.double().mean(tuple(range(1, 1 + len(grid))), keepdim=True)
    errors = dict(
        plain=largest_difference(
            attention(asked, cell), attention(asked, cell, pooled=False)),
        mean=largest_difference(attention(blind, cell), mean))
    refuse(errors, f'the op on {grid} tokens, cell {cell},')
    return errors


# ------------------------------------------------------------------ parts
def scaling(args: argparse.Namespace,
            families: List[List[Grid]]) -> List[dict]:
    """Time and memory of each size over those of the one before."""
    rows = []
    for grids in families:
        for cell in args.cells:
            rows += growth(grids, cell, args)
    return rows


def growth(grids: List[Grid], cell: int,
           args: argparse.Namespace) -> List[dict]:
    """The rows of :func:`scaling` of one cell size, all sizes in turns."""
    inputs = {grid: qkv(grid, args) for grid in grids}
    errors = {grid: check(x, cell) for grid, x in inputs.items()}
    calls: Dict[tuple, Callable] = {}
    for grid, x in inputs.items():
        parts = far_field(x, cell)
        parts['whole'] = partial(attention, x, cell)
        calls.update({(part, grid): call for part, call in parts.items()})
    samples = time_interleaved(
        calls, repeats=args.repeats, warmup=1, least_seconds=args.least)
    rows, last = [], {}
    for (part, grid), call in calls.items():
        row = dict(
            part=part,
            grid=grid,
            cell_size=cell,
            errors=errors[grid],
            seconds=summarise(samples[part, grid]),
            peak_bytes=peak_memory(call),
            growth=None,
            peak_growth=None)
        if part in last:
            before = last[part]
            row.update(
                growth=row['seconds']['median'] / before['seconds']['median'],
                peak_growth=row['peak_bytes'] / before['peak_bytes'])
        last[part] = row
        rows.append(row)
        print_row('scaling', row)
    return rows


def plain(args: argparse.Namespace, families: List[List[Grid]]) -> List[dict]:
    """The whole op against the form that pools no queries."""
    rows = []
    for grid in (grid for grids in families for grid in grids):
        tensors = qkv(grid, args)
        grad = torch.randn(tensors[0].shape)
        for cell in args.cells:
            errors, calls = check(tensors, cell), {}
            for pooled in (True, False):
                calls['inference', pooled] = partial(attention, tensors, cell,
                                                     pooled)
                calls['training', pooled] = partial(training, tensors, grad,
                                                    cell, pooled)
            samples = time_interleaved(
                calls,
                repeats=args.repeats,
                warmup=1,
                least_seconds=args.least)
            for mode in ('inference', 'training'):
                ours, others = (
                    summarise(samples[mode, pooled])
                    for pooled in (True, False))
                rows.append(
                    dict(
                        grid=grid,
                        cell_size=cell,
                        mode=mode,
                        errors=errors,
                        pooled_seconds=ours,
                        plain_seconds=others,
                        faster=others['median'] / ours['median']))
                print_row('plain', rows[-1])
    return rows


PARTS = dict(scaling=scaling, plain=plain)


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS))
    for name in ('lengths', 'sides'):
        parser.add_argument(
            f'--{name}',
            nargs='*',
            type=int,
            help='tokens per axis, for every part (default: each part\'s own)')
    parser.add_argument('--cells', nargs='+', type=int, default=[8, 4])
    parser.add_argument('--heads', type=int, default=2)
    parser.add_argument('--dim', type=int, default=32, help='of a head')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument(
        '--least', type=float, default=0.1, help='seconds of a sample')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULT)
    args = parser.parse_args(argv)
    # Read at PyTorch's first allocation.
    os.environ.setdefault(HUGE_PAGES, '1')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    # Parts measured earlier stay, each with its own environment.
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        lengths, sides = (sorted(default[part] if given is None else given)
                          for given, default in ((args.lengths, LENGTHS),
                                                 (args.sides, SIDES)))
        families = [[(n, ) for n in lengths], [(n, n) for n in sides]]
        families = [grids for grids in families if grids]
        with torch.no_grad():
            for grids in families:
                for cell in args.cells:
                    check_small(len(grids[0]), cell, args)
            rows = PARTS[part](args, families)
        results[part] = dict(
            environment=collect_environment('cpu', args.seed),
            setting=dict(
                heads=args.heads,
                head_dim=args.dim,
                rank=1,
                summaries='avg',
                batch=1,
                dtype='float32',
                repeats=args.repeats,
                huge_pages=os.environ[HUGE_PAGES] == '1'),
            rows=rows)
        write_json(args.out, results)


if __name__ == '__main__':
    main()
