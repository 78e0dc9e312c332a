"""Random calls of the native backend.

Also a program, which a sanitizer watches: ``python native_cases.py 2000``
runs so many, forward and backward, and compares some with the oracle.
"""
import os
import random
import sys

import torch
from compare import compare, leaves, run, summary_kinds

from fma_kernels import Hierarchy
from fma_kernels.backends.native.library import ISAS, library
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


def main(count: int) -> None:
    isas = supported()
    for seed in range(count):
        torch.set_num_threads(1 + seed % 3)
        os.environ['FMA_KERNELS_ISA'] = isas[seed % len(isas)]
        print(f'case {seed}', flush=True)
        if seed % 10:
            run_alone(**draw(seed))
        else:
            compare('native', **draw(seed))
    print('done', flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
