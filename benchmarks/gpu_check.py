"""Is the op right on a GPU? Against float64, on poisoned memory.

    python benchmarks/gpu_check.py           # real sizes, under two minutes
    python benchmarks/gpu_check.py --quick   # small ones, for a sanitizer

The reference is float64 on the very numbers that the op is given: the dense
oracle at small sizes, at large ones the PyTorch backend for the last image
and two of its heads, as attention mixes neither. Where keys are constant on
the coarsest cells, SDPA over all tokens is a second one.
"""
import argparse
import multiprocessing
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod
from typing import Dict, List, Optional, Tuple

import torch
from case import Case, Tensors, coarse
from measure import attempt, parser, record, settle
from torch import Tensor

from fma_kernels import explain_backend

# Of the norm of the reference, for results and for gradients: results are
# rounded once, and operands of the products, two in a row for gradients.
TOLERANCES = dict(
    bfloat16=(1e-2, 2e-2), float16=(2e-3, 4e-3), float32=(1e-5, 5e-5))
# The dense oracle holds tokens x keys.
SMALL = 2500
NAMES = 'out', 'lse', 'grad_query', 'grad_key', 'grad_value'

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


def poison(nbytes: int, device: str) -> None:
    """Leaves NaN in the memory that the next tensors will get.

    PyTorch's allocator hands out freed blocks as they are: an element that a
    kernel forgets to write, or reads before it is written, is then NaN. The
    byte 255 repeated is NaN in every floating-point format.
    """
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()
        nbytes = min(nbytes, torch.cuda.mem_get_info()[0] // 2)
    # Requests of up to 1 MiB come from a pool of their own.
    blocks = [
        torch.full((size, ), 255, dtype=torch.uint8, device=device)
        for size in [2**19] * 64 + [nbytes]
    ]
    del blocks


@torch.enable_grad()
def run(case: Case, tensors: Tensors, grad: Tensor,
        **options: object) -> Dict[str, Tensor]:
    """Output, lse and gradients of one call."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = case.fma(leaves, return_lse=True, **options)
    grads = torch.autograd.grad(out, leaves, grad)
    return dict(zip(NAMES, (out.detach(), lse.detach(), *grads)))


def check(case: Case, tensors: Tensors, **options: object) -> Dict[str, float]:
    """Errors relative to the norm of the reference; of lse, their mean.

    Args:
        case: What is to be measured, or a rival that computes the same.
        tensors: On these.
        **options: Of the op.

    Raises:
        ArithmeticError: An error is more than rounding, or a number is not
            finite anywhere.
    """
    grad = torch.randn_like(tensors[0])
    heads = sorted({0, case.heads - 1})

    def picked(x: Tensor) -> Tensor:
        return x[-1:][..., heads, :].double()

    last = dict(options)
    if 'key_mask' in options:
        last['key_mask'] = options['key_mask'][-1:]
    exact = replace(
        case, backend='naive' if prod(case.grid) <= SMALL else 'torch')
    expected = run(exact, [picked(x) for x in tensors], picked(grad), **last)
    poison(16 * tensors[0].nbytes, case.device)
    found = run(case, tensors, grad, **options)
    errors = {}
    for name, x in found.items():
        if not torch.isfinite(x).all():
            raise ArithmeticError(f'{name} is not finite')
        y = expected[name]
        if name == 'lse':  # its error is one relative to a sum
            x, y, size = x[..., None], y[..., None], y.numel()**.5
        else:
            size = y.norm()
        errors[name] = float((picked(x) - y).norm() / size)
        allowed = TOLERANCES[case.dtype][name.startswith('grad')]
        if not errors[name] <= allowed:
            raise ArithmeticError(f'{name} is off by {errors[name]:.1e} of '
                                  f'its norm, allowed are {allowed:.0e}')
    return errors


def exactness(case: Case, tensors: Tensors, **options: object) -> float:
    """Against SDPA, with keys constant on coarsest cells.

    There FMA is full attention, whatever the values; with pooled queries, if
    these are constant as well.

    Raises:
        ArithmeticError: If it is not.
    """
    query, key, value = tensors
    width = max(case.hierarchy.widths, default=1)
    key = coarse(key, width)
    if case.pool_queries:
        query = coarse(query, width)
    poison(8 * query.nbytes, case.device)
    found = case.fma((query, key, value), **options)
    full = case.sdpa((query, key, value)).float()
    error = float((found.float() - full).norm() / full.norm())
    allowed = 2 * TOLERANCES[case.dtype][0]  # both round
    if not error <= allowed:
        raise ArithmeticError(f'off SDPA by {error:.1e} of its norm where '
                              f'both are equal, allowed are {allowed:.0e}')
    return error


def one_row(entry: Tuple[Case, dict], args: argparse.Namespace) -> dict:
    """Checks one entry of QUICK or FULL."""
    case, options = entry
    case = replace(case, backend=args.backend, device=args.device)
    row, options = case.row(options=dict(options)), dict(options)
    torch.manual_seed(args.seed)

    def both() -> dict:
        tensors = case.tensors()
        if options.pop('mask', False):
            options['key_mask'] = torch.rand(
                case.batch, *case.grid, device=case.device) < .7
        found = dict(errors=check(case, tensors, **options))
        found['worst'] = max(found['errors'].values())
        if not {'key_mask', 'dropout_p'} & set(options):
            found['exactness'] = exactness(case, tensors, **options)
        return found

    found, reason = attempt(both, device=case.device)
    return dict(row, **(found or dict(reason=reason)))


def main(argv: Optional[List[str]] = None) -> int:
    """Checks all; 1 if the op was wrong anywhere."""
    options = parser(__doc__)
    options.add_argument(
        '--jobs', type=int, default=1, help='processes: compiling takes long')
    options.set_defaults(seed=secrets.randbits(31))
    args = settle(options.parse_args(argv), 'op')
    backends = explain_backend(
        torch.empty(1, 16, 16, 2, 32, device=args.device).bfloat16())
    print(f"'auto' for bfloat16 on {args.device}:\n{backends}")
    entries = QUICK if args.quick else FULL
    with ProcessPoolExecutor(args.jobs,
                             multiprocessing.get_context('spawn')) as pool:
        rows = (pool.map if args.jobs > 1 else map)(partial(
            one_row, args=args), entries)
        rows = record('check', rows, args)
    bad = sum('reason' in row for row in rows)
    print(f'{len(rows) - bad} of {len(rows)} are right; seed {args.seed}')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main())
