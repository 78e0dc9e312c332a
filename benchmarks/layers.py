"""Attention layers side by side: parameters, multiply-adds, time, memory.

    python benchmarks/layers.py --threads 2       # all layers, ten sizes
    python benchmarks/layers.py --parts maps --layers FMA FullAttention
    python benchmarks/layers.py --quick           # a rehearsal, writes nothing
    python benchmarks/tables.py                   # then: the tables

A layer of your own is one line in LAYERS. Fast Multipole Attention is checked
before it is timed, the others in the tests; all take turns in one process. A
layer with more than MOST multiply-adds at a size is named with that reason.
"""
import argparse
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from measure import Call, compare, parser, run_parts
from torch import Tensor, nn

from fma_vision.engine.complexity import (attention_layer_macs,
                                          count_parameters, measure_complexity)
from fma_vision.layers import build_attention

# An argument with this value becomes the grid.
GRID = 'grid'
# The cells of sequences: those of the language model.
CELLS = dict(cell_size=64, rank=4)
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
        'FMA': dict(type='FMAttention1D', **CELLS),
        'FMA-linear': dict(type='FMAttention1D', **CELLS, pool_queries=True),
        'FullAttention1D': dict(type='FullAttention1D'),
        'FMMformerAttention1D': dict(type='FMMformerAttention1D'),
        'LongShortAttention1D': dict(type='LongShortAttention1D'),
        'Fastformer': dict(type='Fastformer'),
    })
# Channels and heads: Swin-T's first stage, and the language model.
SIZES = dict(maps=(96, 3), sequences=(256, 8))
SHAPES = dict(
    maps=[(56, 56), (128, 128), (256, 256)],
    sequences=[(4096, ), (16384, ), (65536, )])
QUICK = dict(maps=[(12, 12), (20, 20)], sequences=[(300, ), (700, )])
# A minute of a call on one core.
MOST = 1e12
# Several levels of cells, with ragged borders.
CHECKED = dict(maps=(45, 43), sequences=(1000, ))
Grid = Tuple[int, ...]


def build(part: str, name: str, grid: Grid) -> nn.Module:
    """A layer for a grid; weights that are all zero would hide mistakes."""
    size = grid if len(grid) > 1 else grid[0]
    config = {
        k: size if v == GRID else v
        for k, v in LAYERS[part][name].items()
    }
    torch.manual_seed(0)
    layer = build_attention(config, *SIZES[part])
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=.1)
    return layer.eval()


@torch.enable_grad()
def forward_backward(layer: nn.Module, x: Tensor) -> Tuple[Tensor, Tensor]:
    """The output; the gradients of the input and of all weights, in one."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    out = layer(leaves[0])
    found = torch.autograd.grad(out, leaves, x, allow_unused=True)
    return out, torch.cat([g.flatten() for g in found if g is not None])


def check(part: str, name: str) -> float:
    """The error of FMA against its definition, over the largest number."""
    grid = CHECKED[part]
    layer = build(part, name, grid).double()
    x = torch.randn(2, *grid, SIZES[part][0], dtype=torch.float64)
    found = forward_backward(layer, x)
    layer.backend = 'naive'
    error = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(found, forward_backward(layer, x)))
    if not error <= 1e-9:
        raise RuntimeError(f'{name} is wrong by {error:.1e} of the largest '
                           'number; nothing was timed')
    return error


def call(layer: nn.Module, x: Tensor, mode: str) -> Call:
    if mode == 'training':
        return lambda: forward_backward(layer, x)
    return lambda: layer(x)


def measure(part: str, args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the layers at all sizes, those that are left out first."""
    known, (dim, heads) = LAYERS[part], SIZES[part]
    names = [x for x in args.layers or known if x in known]
    errors = {x: check(part, x) for x in names if x.startswith('FMA')}
    for mode in ['inference'] + ['training'] * args.training:
        for grid in (QUICK if args.quick else SHAPES)[part]:
            x, entries = torch.randn(1, *grid, dim), []
            for name in names:
                layer = build(part, name, grid)
                row: Dict[str, Any] = dict(
                    layer=name, config=known[name], shape=grid, mode=mode)
                row.update(dim=dim, heads=heads)
                row['parameters'] = count_parameters(layer)
                if name in errors:
                    row['errors'] = dict(definition=errors[name])
                macs = attention_layer_macs(layer, *grid) or 0
                if macs > MOST:
                    yield dict(row, reason=f'{macs / 1e9:,.0f} G MACs a call')
                    continue
                # A product with a filter is no matrix product.
                row['macs'] = max(measure_complexity(layer, x).macs, macs)
                entries.append((row, dict(layer=call(layer, x, mode))))
            for row in compare(entries, args):
                yield dict(row, peak_memory_bytes=row['peak_bytes']['layer'])


def maps(args: argparse.Namespace) -> Iterator[dict]:
    return measure('maps', args)


def sequences(args: argparse.Namespace) -> Iterator[dict]:
    return measure('sequences', args)


def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        '--layers',
        nargs='+',
        choices=sorted({*LAYERS['maps'], *LAYERS['sequences']}),
        help='default: all')
    options.add_argument(
        '--training', action='store_true', help='also forward and backward')
    run_parts(options, 'layers', dict(cpu=(maps, sequences)), argv)


if __name__ == '__main__':
    main()
