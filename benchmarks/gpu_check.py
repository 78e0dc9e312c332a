"""What `ops.py --parts check` holds against float64, on poisoned memory."""
import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Iterable, Tuple

import torch
from case import Case, check
from measure import attempt

from fma_kernels import explain_backend

image = partial(Case, dtype='bfloat16')
text = partial(Case, heads=4, head_dim=64, causal=True, dtype='bfloat16')
DROPOUT = dict(dropout_p=.1, dropout_seed=7)
QUICK = (
    (image((13, 19), 4, 2), {}),
    (image((13, 18), 4, 1), dict(mask=True)),
    (image((11, 14), 2, 1, batch=2), dict(rank=2)),
    (text((150, ), 16, heads=2, head_dim=32), {}),
    # Dropout depends on the number of the head: all are compared.
    (image((17, 13), 4, 1), DROPOUT),
    (image((13, 19), 4, 2, dtype='float32'), {}),
    (image((13, 19), 4, 2, pool_queries=True), {}),
)
# What is measured, ragged grids, and every switch.
FULL = QUICK + (
    (image((256, 256), 8, batch=2), {}),
    (image((256, 256), 4, batch=2), {}),
    (text((65536, ), 128), {}),
    (text((65536, ), 64), {}),
    (image((250, 251), 8), {}),
    (image((250, 251), 4), {}),
    (text((65521, ), 128), {}),
    (text((2**20, ), 128, heads=2), {}),
    (image((512, 512), 4), {}),
    (image((256, 256), 8), dict(mask=True)),
    (image((256, 256), 8, 1), DROPOUT),
    (image((256, 256), 8), dict(rank=2)),
    (text((65536, ), 64, causal=False), {}),
    (image((512, 512), 8, 1, 64), {}),
    (image((256, 256), 8, batch=2, pool_queries=True), {}),
    (image((250, 251), 4, pool_queries=True), dict(mask=True)),
    (text((65521, ), 64, causal=False, pool_queries=True), {}),
)


def one_row(entry: Tuple[Case, dict], args: argparse.Namespace) -> dict:
    """Checks one entry of QUICK or FULL."""
    case, options = entry
    case = replace(case, backend=args.backend, device=args.device)
    row, options = case.row(options=dict(options)), dict(options)
    torch.manual_seed(args.seed)

    def errors() -> dict:
        if options.pop('mask', False):
            options['key_mask'] = torch.rand(
                case.batch, *case.grid, device=case.device) < .7
        exact = not {'key_mask', 'dropout_p'} & set(options)
        return check(case, case.tensors(), exact, **options)

    found, reason = attempt(errors, case.device)
    if reason:
        return dict(row, reason=reason)
    return dict(row, errors=found, worst=max(found.values()))


def rows(args: argparse.Namespace) -> Iterable[dict]:
    """A row of each entry, the small ones one after the other."""
    backends = explain_backend(
        torch.empty(1, 16, 16, 2, 32, device=args.device).bfloat16())
    print(f"'auto' for bfloat16 on {args.device}:\n{backends}")
    one = partial(one_row, args=args)
    if args.quick:
        yield from map(one, QUICK)
        return
    # Compiling takes long.
    with ProcessPoolExecutor(
            min(os.cpu_count(), 8),
            multiprocessing.get_context('spawn')) as pool:
        yield from pool.map(one, FULL)
