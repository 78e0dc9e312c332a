"""Attention layers side by side: parameters, multiply-adds, time, memory.

    python benchmarks/layers.py --threads 2       # all layers, ten sizes
    python benchmarks/layers.py --parts maps --layers FMA FullAttention
    python benchmarks/layers.py --quick           # a rehearsal, writes nothing
    python benchmarks/tables.py                   # then: the tables

A layer of your own is one line in LAYERS. Each layer is checked before it is
timed; those that fit a size take turns in one process. A size whose call
would take longer than `--time-limit`, foretold from the one before, is named
with that reason.
"""
import argparse
import copy
import sys
from math import prod
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from measure import Call, compare, parser, record, settle
from torch import Tensor, nn

from fma_vision.engine.complexity import (attention_layer_macs,
                                          count_parameters, measure_complexity)
from fma_vision.engine.timing import peak_memory, time_interleaved
from fma_vision.layers import build_attention

# An argument with this value becomes the grid.
GRID = 'grid'
# The cells of sequences are those of the language model.
LAYERS: Dict[str, Dict[str, dict]] = dict(
    maps={
        'FMA': dict(type='FMAttention2D', cell_size=4),
        'FMA-linear':
        dict(type='FMAttention2D', cell_size=4, pool_queries=True),
        'FullAttention': dict(type='FullAttention'),
        'WindowAttention': dict(type='WindowAttention', window_size=7),
        'NeighborhoodAttention':
        dict(type='NeighborhoodAttention', kernel_size=7),
        'FMMformerAttention2D': dict(type='FMMformerAttention2D'),
        'MANOAttention': dict(type='MANOAttention'),
        'GlobalFilter': dict(type='GlobalFilter', size=GRID),
        'LongShortAttention': dict(type='LongShortAttention'),
    },
    sequences={
        'FMA':
        dict(type='FMAttention1D', cell_size=64, rank=4),
        'FMA-linear':
        dict(type='FMAttention1D', cell_size=64, rank=4, pool_queries=True),
        'FullAttention1D':
        dict(type='FullAttention1D'),
        'FMMformerAttention1D':
        dict(type='FMMformerAttention1D'),
        'LongShortAttention1D':
        dict(type='LongShortAttention1D'),
        'Fastformer':
        dict(type='Fastformer'),
    })
# Channels and heads: Swin-T's first stage, and the language model.
SIZES = dict(maps=(96, 3), sequences=(256, 8))
SHAPES = dict(
    maps=[(56, 56), (128, 128), (256, 256)],
    sequences=[(4096, ), (16384, ), (65536, )])
QUICK = dict(maps=[(12, 12), (20, 20)], sequences=[(300, ), (700, )])
# Several levels of cells, with ragged borders.
CHECKED = dict(maps=(45, 43), sequences=(1000, ))
# Relative errors that are rounding: of float64, and of float32 against it.
EXACT, ROUNDED = 1e-9, 1e-3
Grid = Tuple[int, ...]


def build(part: str, name: str, grid: Grid) -> nn.Module:
    """A layer for a grid, none of whose weights are all zero.

    Those that start at zero would hide mistakes in what they weigh.
    """
    dim, heads = SIZES[part]
    size = grid if len(grid) > 1 else grid[0]
    config = {
        k: size if v == GRID else v
        for k, v in LAYERS[part][name].items()
    }
    torch.manual_seed(0)
    layer = build_attention(config, dim, heads)
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=.1)
    return layer.eval()


# ------------------------------------------------------------------ checks
def difference(found: Tensor, reference: Tensor) -> float:
    """The largest error over the largest number."""
    error = (found.double() - reference.double()).abs().max()
    return float(error / reference.abs().max())


def pass_through(layer: nn.Module, x: Tensor) -> List[Tensor]:
    """The output, and the gradients of the input and of all weights."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    out = layer(leaves[0])
    found = torch.autograd.grad(out, leaves, x, allow_unused=True)
    return [out.detach(), *(g for g in found if g is not None)]


def check(part: str, name: str) -> Dict[str, float]:
    """The errors of a layer on a small grid.

    Fast Multipole Attention against its definition, with gradients (tests
    hold the others against theirs); images alone against those in a batch;
    float32 against float64.

    Raises:
        RuntimeError: An error is not rounding.
    """
    grid, (dim, _) = CHECKED[part], SIZES[part]
    narrow = build(part, name, grid)
    layer = copy.deepcopy(narrow).double()
    x = torch.randn(2, *grid, dim, dtype=torch.float64)
    found = pass_through(layer, x)
    errors = {}
    if hasattr(layer, 'backend'):
        layer.backend = 'naive'
        reference = pass_through(layer, x)
        # In one, as some gradients are 0, such as that of the keys' bias.
        errors['definition'] = max(
            difference(found[0], reference[0]),
            difference(*(torch.cat([g.flatten() for g in given[1:]])
                         for given in (found, reference))))
    with torch.no_grad():
        errors['alone'] = difference(layer(x[:1]), found[0][:1])
        errors['float32'] = difference(narrow(x.float()), found[0])
    for what, error in errors.items():
        if not error <= (ROUNDED if what == 'float32' else EXACT):
            raise RuntimeError(f'{name} is wrong ({what}: {error:.1e} of the '
                               'largest number); nothing was timed')
    return errors


# ----------------------------------------------------------------- numbers
def work(layer: nn.Module, grid: Grid) -> int:
    """What time grows with: multiply-adds; tokens, where they are unknown.

    Transforms and norms have no multiply-adds, so tokens count as well.
    """
    return max(attention_layer_macs(layer, *grid) or 0, prod(grid))


def call(layer: nn.Module, x: Tensor, mode: str) -> Call:
    """A forward pass, or ``'training'``: forward and backward."""
    if mode == 'training':
        return lambda: pass_through(layer, x)

    @torch.no_grad()
    def inference() -> Tensor:
        return layer(x)

    return inference


def measure(part: str, mode: str, checked: Dict[str, Dict[str, float]],
            args: argparse.Namespace) -> List[dict]:
    """Rows of layers, with what their checks found, at all sizes."""
    before: Dict[str, float] = {}  # seconds for a unit of work
    rows = []
    for grid in (QUICK if args.quick else SHAPES)[part]:
        x = torch.randn(1, *grid, SIZES[part][0])
        entries, left_out = [], []
        for name, errors in checked.items():
            layer = build(part, name, grid)
            row: Dict[str, Any] = dict(
                layer=name,
                config=LAYERS[part][name],
                shape=list(grid),
                mode=mode,
                errors=errors,
                parameters=count_parameters(layer))
            seconds = before.get(name, 0) * work(layer, grid)
            if seconds > args.time_limit:
                reason = (f'would take {seconds:.3g} s a call, '
                          f'{args.time_limit:g} s allowed')
                left_out.append(dict(row, reason=reason))
                continue
            # A product with a filter is no matrix product.
            row['macs'] = max(
                measure_complexity(layer, x).macs,
                attention_layer_macs(layer, *grid) or 0)
            run = call(layer, x, mode)
            row['peak_memory_bytes'] = peak_memory(run)
            once = time_interleaved(dict(run=run), repeats=1, warmup=0)['run']
            before[name] = once[0] / work(layer, grid)
            entries.append((row, dict(layer=run)))
        if entries:
            rows += compare(entries, args.repeats, args.least)
        rows += left_out
    return rows


def main(argv: Optional[List[str]] = None) -> None:
    known = sorted({name for part in LAYERS.values() for name in part})
    options = parser(__doc__, None)
    options.add_argument(
        '--parts', nargs='+', choices=LAYERS, default=list(LAYERS))
    options.add_argument(
        '--layers', nargs='+', choices=known, help='default: all')
    options.add_argument(
        '--training', action='store_true', help='also forward and backward')
    options.add_argument('--threads', type=int, default=2)
    options.add_argument(
        '--time-limit', type=float, default=60, help='seconds of a call')
    args = settle(options.parse_args(argv), 'layers')
    torch.set_num_threads(args.threads)
    for part in args.parts:
        dim, heads = SIZES[part]
        names = [x for x in args.layers or LAYERS[part] if x in LAYERS[part]]
        checked, rows = {name: check(part, name) for name in names}, []
        for mode in ['inference'] + ['training'] * args.training:
            rows += measure(part, mode, checked, args)
        record(part, rows, args, dim=dim, heads=heads, dtype='float32')


if __name__ == '__main__':
    main()
