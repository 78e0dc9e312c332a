"""Random calls of the native backend.

Also a program, which a sanitizer watches: ``python native_cases.py 2000``
runs so many, forward and backward, and compares some with the oracle.
"""
import os
import random
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from compare import compare, leaves, run, summary_kinds
from torch import nn

from fma_kernels import Hierarchy, fma1d
from fma_kernels.backends.native import block, stream
from fma_kernels.backends.native.library import ISAS, library
from fma_kernels.summaries import average_summaries
from fma_kernels.testing import random_mask


def supported() -> list:
    """The instruction sets of this processor."""
    return list(ISAS[:library().fma_best_isa() + 1])


def draw(seed: int) -> dict:
    """Arguments of :func:`compare.compare`: small, and of every kind."""
    choose = random.Random(seed)
    ndim = choose.randint(1, 2)
    limit = choose.choice([4, 60] if ndim == 1 else [3, 13])
    shape = tuple(choose.randint(1, limit) for _ in range(ndim))
    cell_size = choose.choice([1, 2, 3, 4, 4, 6, 8, 13, 20])
    ranks = [rank for rank in range(1, 5) if cell_size % rank == 0]
    kind = choose.choice(['plain', 'pooled', 'biased', 'causal'])
    case = dict(
        shape=shape,
        cell_size=cell_size,
        num_levels=choose.choice([None, None, 0, 1, 2, 6]),
        rank=choose.choice(ranks),
        batch=choose.randint(1, 3),
        heads=choose.randint(1, 5),
        head_dim=choose.choice([1, 3, 4, 8, 16, 17, 24, 33]),
        dtype=choose.choice([torch.float32] * 3 +
                            [torch.bfloat16, torch.float16]),
        mass=choose.random() < 0.8,
        scale=choose.choice([None, None, 0.3, 0.0, -0.2]),
        summaries=choose.random() < 0.3,
        biases=kind == 'biased',
        dropout_p=choose.choice([0.0, 0.0, 0.4]),
        dropout_seed=choose.getrandbits(62),
        mask=None)
    if choose.random() < 0.4:
        real = choose.choice([0.0, 0.1, 0.5, 0.9])
        case['mask'] = random_mask(shape, case['batch'], real, seed=seed)
    if kind == 'pooled':
        case['pool_queries'] = True
    elif ndim == 1:
        case['causal'] = kind == 'causal' or choose.random() < 0.2
    return case


def run_alone(shape, cell_size, num_levels, rank, dtype, batch, heads,
              head_dim, summaries, biases, mask, **options) -> None:
    """As :func:`compare.compare`, without the oracle."""
    h = Hierarchy(shape, cell_size, num_levels, rank)
    kinds = len(summary_kinds(options)) if summaries else 0
    inputs = leaves(h, dtype, batch, heads, head_dim, kinds, biases, mask)
    options.update(cell_size=cell_size, num_levels=num_levels, rank=rank)
    run('native', inputs, shape, summaries, key_mask=mask, **options)


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """``[..., heads, dim]`` by cosines and sines ``[..., 2, dim / 2]``."""
    cos, sin = angles.unsqueeze(-3).unbind(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def compare_stream(seed: int) -> None:
    """New tokens after a past, from its state, against the whole sequence.

    The state is built from its definition: the last tokens, finished cells
    that a later query may see, and all cells of a top level.
    """
    choose = random.Random(seed)
    torch.manual_seed(seed)
    size, batch = choose.choice([2, 4, 6]), choose.randint(1, 3)
    rank = choose.choice([r for r in (1, 2, 3) if size % r == 0])
    heads, dim = choose.randint(1, 3), choose.choice([2, 8, 18, 32])
    limit = choose.choice([None, None, 1, 2, 3])
    mass = choose.random() < .8
    cells = choose.choice([0, 1, 2, 3, 5, 8, 12, 16, 31])
    start, length = cells * size, choose.randint(1, 60)
    if choose.random() < .5:  # tokens of one leaf cell, anywhere in it
        start += choose.randrange(size)
        length = choose.randint(1, size - start % size)
    elif cells:
        length = min(length, size * (cells & -cells))
    total = start + length
    tree = Hierarchy((total, ), size, limit, rank, True)
    qkv = torch.randn(batch, total, 3, heads, dim)
    query, key, value = qkv.unbind(2)
    angles = torch.randn(batch, total, 2, dim // 2)
    of_cells = torch.randn(batch, tree.num_summaries, 2, dim // 2)
    packed = [average_summaries(x, tree) for x in (key, value)]
    expected = fma1d(
        turned(query, angles),
        turned(key, angles),
        value,
        cell_size=size,
        num_levels=limit,
        rank=rank,
        key_summaries=turned(packed[0], of_cells),
        value_summaries=packed[1],
        causal=True,
        mass=mass,
        backend='naive')[:, start:]

    def row(level: int, cell: int) -> slice:
        first = tree.level_starts[level - 1] + cell * rank
        return slice(first, first + rank)

    near = torch.full((2, batch, 2 * size, heads, dim), torch.nan)
    for at in range(max(start - 2 * size, 0), start):
        near[0, :, at % (2 * size)] = turned(key, angles)[:, at]
        near[1, :, at % (2 * size)] = value[:, at]
    below = tree.num_levels - (limit is not None)
    both = torch.stack(packed)  # [2, B, M, heads, dim]
    far = torch.zeros(2, batch, below, 3, rank, heads, dim)
    far_angles = torch.zeros(batch, below, 3, rank, 2, dim // 2)
    for level in range(1, below + 1):
        done = start // tree.widths[level - 1]
        for cell in range(max(done - 5, 0), done):
            slot = 2 if cell % 2 else cell // 2 % 2
            far[:, :, level - 1, slot] = both[:, :, row(level, cell)]
            far_angles[:, level - 1, slot] = of_cells[:, row(level, cell)]
    done = start // tree.widths[-1] if limit else 0
    top = torch.zeros(2, batch, done, rank, heads, dim)
    top_angles = torch.zeros(batch, done, rank, 2, dim // 2)
    for cell in range(done):
        top[:, :, cell] = both[:, :, row(limit, cell)]
        top_angles[:, cell] = of_cells[:, row(limit, cell)]
    own = taps = None
    inside = start % size + length <= size
    sums = torch.randn(2, batch, choose.randint(1, 3), rank, heads, dim)
    if inside:
        taps = [[
            torch.randn(rank, size << level, dim)
            if choose.random() < .7 else None for level in range(sums.shape[2])
        ] for _ in range(2)]
    else:
        own = own_summaries(tree, start, both, of_cells)
    given = (torch.tensor([start] * batch), torch.tensor([length] * batch),
             (near, far, top, sums),
             SimpleNamespace(
                 cell_size=size, rank=rank, mass=mass, limit=limit))
    options = dict(
        angles=(angles[:, start:].contiguous(),
                torch.cat([far_angles.flatten(1, 3),
                           top_angles.flatten(1, 2)], 1)),
        own=own,
        taps=taps)
    found, after, added = stream.attend(qkv[:, start:], *given, **options)
    compare_block(length, heads, dim, given, options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for at in range(max(total - 2 * size, 0), total):
        slot = at % (2 * size)
        torch.testing.assert_close(after[0, :, slot],
                                   turned(key, angles)[:, at])
        assert torch.equal(after[1, :, slot], value[:, at])
    if not inside:
        assert added is sums
        return
    for at in range(start, total):
        for level in range(sums.shape[2]):
            place = at % (size << level)
            part = place // ((size << level) // rank)
            for which in range(2):
                x = qkv[:, at, 1 + which]
                sums[which, :, level, part] += x
                weights = taps[which][level]
                if weights is not None:
                    sums[which, :, level] += (
                        weights[:, place, None] * x[:, None])
    torch.testing.assert_close(added, sums, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def compare_block(length: int, heads: int, dim: int, given: tuple,
                  options: dict) -> None:
    """A block in one call against its layers."""
    width, hidden = heads * dim, 4 * heads * dim + 5
    norms = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-2)
    layers = (nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False),
              nn.Linear(width, hidden), nn.Linear(hidden, width))
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(len(given[0]), length, width)
    qkv = layers[0](norms[0](x)).unflatten(-1, (3, heads, dim))
    out, *state = stream.attend(qkv, *given, **options)
    y = x + layers[1](out.flatten(2))
    y = y + layers[3](F.gelu(layers[2](norms[1](y))))
    found = block.block(x, block.Weights(norms, layers), heads, *given,
                        **options)
    for one, other in zip(found, (y, *state)):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def own_summaries(tree: Hierarchy, start: int, both: torch.Tensor,
                  angles: torch.Tensor) -> stream.Own:
    """Of the cells from ``start`` on: their rows of the whole sequence."""
    rows, starts = [], []
    for level, (first, width, (count, )) in enumerate(
            zip(tree.level_starts, tree.widths, tree.grids)):
        starts.append(len(rows))
        begin = first + -(-start // width) * tree.rank
        rows += range(begin, first + count * tree.rank)
    keys = turned(both[0], angles)[:, rows].contiguous()
    return stream.Own(keys, both[1][:, rows].contiguous(), starts)


def main(count: int) -> None:
    isas = supported()
    for seed in range(count):
        torch.set_num_threads(1 + seed % 3)
        os.environ['FMA_KERNELS_ISA'] = isas[seed % len(isas)]
        print(f'case {seed}', flush=True)
        if seed % 4 == 0:
            compare_stream(seed)
        if seed % 10:
            run_alone(**draw(seed))
        else:
            compare('native', **draw(seed))
    print('done', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
