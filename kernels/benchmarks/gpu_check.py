"""Is the op right? Against float64, on poisoned memory, at real sizes.

The reference is the PyTorch backend in float64 on the very numbers
that the op is given; that backend in turn is compared with the dense oracle.
"""
import time
from argparse import Namespace
from typing import Any, Dict, List, Optional, Tuple

import torch
from gpu_common import Case, Recorder, attempt, inputs, synchronize
from gpu_ops import attention, fma_options
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, explain_backend

# Of the norm of the reference: results are rounded once, and operands of the
# products too; gradients pass through two such products.
TOLERANCES = dict(
    bfloat16=(1e-2, 2e-2), float16=(2e-3, 4e-3), float32=(1e-5, 5e-5))
# What the targets are about first: later entries may run out of time.
FULL = [
    # shape, cell, heads, head_dim, batch, options
    ((256, 256), 8, 3, 32, 2, {}),
    ((256, 256), 4, 3, 32, 2, {}),
    ((65536, ), 128, 4, 64, 1, dict(causal=True)),
    ((65536, ), 64, 4, 64, 1, dict(causal=True)),
    ((250, 251), 8, 3, 32, 1, {}),
    ((250, 251), 4, 3, 32, 1, {}),
    ((65521, ), 128, 4, 64, 1, dict(causal=True)),
    ((2**20, ), 128, 2, 64, 1, dict(causal=True)),
    ((512, 512), 4, 3, 32, 1, {}),
    ((256, 256), 8, 3, 32, 1, dict(mask=True)),
    # Dropout depends on the number of the head: all are compared.
    ((256, 256), 8, 1, 32, 1, dict(dropout_p=0.1, dropout_seed=7)),
    ((256, 256), 8, 3, 32, 1, dict(rank=2)),
    ((65536, ), 64, 4, 64, 1, {}),
    ((512, 512), 8, 1, 64, 1, {}),
    ((256, 256), 8, 3, 32, 2, dict(pool_queries=True)),
    ((250, 251), 4, 3, 32, 1, dict(pool_queries=True, mask=True)),
    ((65521, ), 64, 4, 64, 1, dict(pool_queries=True)),
]
TINY = [
    ((37, 53), 8, 2, 32, 1, {}),
    ((37, 53), 4, 2, 32, 1, dict(mask=True)),
    ((32, 32), 4, 2, 32, 2, dict(rank=2)),
    ((700, ), 64, 2, 64, 1, dict(causal=True)),
    ((37, 53), 8, 1, 32, 1, dict(dropout_p=0.1, dropout_seed=7)),
    ((37, 53), 8, 2, 32, 1, dict(dtype='float32')),
    ((37, 53), 4, 2, 32, 1, dict(pool_queries=True)),
]
# A target in itself: run once, with nothing to compare it with.
LARGEST = Case((2**20, ), (128, ), 16, 64, 1, causal=True)
TINY_LARGEST = Case((700, ), (64, ), 2, 64, 1, causal=True)


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
    small = [
        torch.full((2**19, ), 255, dtype=torch.uint8, device=device)
        for _ in range(64)
    ]
    large = torch.full((nbytes, ), 255, dtype=torch.uint8, device=device)
    synchronize(device)
    del small, large


def run(tensors: List[Tensor], grad: Tensor,
        options: Dict[str, Any]) -> Dict[str, Tensor]:
    """Output, lse and gradients of one call."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = attention(*leaves, return_lse=True, **options)
    grads = torch.autograd.grad(out, leaves, grad)
    names = ('grad_query', 'grad_key', 'grad_value')
    return dict(out=out.detach(), lse=lse.detach(), **dict(zip(names, grads)))


def pick(x: Tensor, heads: List[int]) -> Tensor:
    """The last image and a few heads: attention does not mix them."""
    return x[-1:][..., heads, :].double()


def reference(tensors: List[Tensor], grad: Tensor, heads: List[int],
              options: Dict[str, Any]) -> Dict[str, Tensor]:
    """The same in float64, for the last image and some heads."""
    options = dict(options, backend='torch')
    if options.get('key_mask') is not None:
        options['key_mask'] = options['key_mask'][-1:]
    return run([pick(x, heads) for x in tensors], pick(grad, heads), options)


def compare(found: Dict[str, Tensor], expected: Dict[str, Tensor],
            heads: List[int], dtype: str) -> Dict[str, float]:
    """Errors relative to the norm of the reference; of lse, their mean.

    Raises:
        ArithmeticError: if one is more than rounding, or a number is not
            finite anywhere.
    """
    errors = {}
    for name, x in found.items():
        if not torch.isfinite(x).all():
            raise ArithmeticError(f'{name} is not finite')
        x = x[..., None] if name == 'lse' else x
        y = expected[name][..., None] if name == 'lse' else expected[name]
        # An error of the lse is one relative to the sum it is the log of.
        size = y.numel()**0.5 if name == 'lse' else y.norm()
        errors[name] = float((pick(x, heads) - y).norm() / size)
    for name, error in errors.items():
        allowed = TOLERANCES[dtype][name.startswith('grad')]
        if not error <= allowed:
            raise ArithmeticError(
                f'{name} is off by {error:.1e} of its norm, allowed are '
                f'{allowed:.0e}')
    return errors


def check(tensors: List[Tensor],
          grad: Tensor,
          options: Dict[str, Any],
          args: Namespace,
          expected: Optional[Dict[str, Tensor]] = None) -> Dict[str, float]:
    """Compares the op with float64 on poisoned memory.

    Args:
        tensors: query, key and value as they will be timed.
        grad: of the output.
        options: of the op, ``backend`` included.
        args: the command line.
        expected: of :func:`reference`, where it is known.

    Returns:
        The errors of the output, lse and gradients.

    Raises:
        ArithmeticError: if the op is wrong.
    """
    heads = picked_heads(tensors[0])
    if expected is None:
        expected = reference(tensors, grad, heads, options)
    poison(16 * tensors[0].nbytes, args.device)
    found = run(tensors, grad, options)
    return compare(found, expected, heads, args.dtype)


def picked_heads(query: Tensor) -> List[int]:
    """The first and the last head."""
    return sorted({0, query.shape[-2] - 1})


def exactness(tensors: List[Tensor], options: Dict[str, Any],
              args: Namespace) -> float:
    """Against SDPA over all tokens, with keys constant on coarsest cells.

    There FMA is full attention, whatever the values; with pooled queries, if
    these are constant as well.

    Raises:
        ArithmeticError: if it is not.
    """
    query, key, value = tensors
    shape = tuple(query.shape[1:-2])
    causal = options.get('causal', False)
    width = Hierarchy(shape, options['cell_size']).widths[-1]
    for axis, size in enumerate(shape, 1):
        index = torch.arange(size, device=key.device) // width * width
        key = key.index_select(axis, index)
        if options.get('pool_queries'):
            query = query.index_select(axis, index)
    poison(8 * query.nbytes, args.device)
    found = attention(query, key, value, **options)
    heads_first = (
        x.flatten(1, -3).transpose(1, 2) for x in (query, key, value))
    full = scaled_dot_product_attention(*heads_first, is_causal=causal)
    full = full.transpose(1, 2).reshape(query.shape)
    error = float((found - full).float().norm() / full.float().norm())
    # Both sides round.
    allowed = 2 * TOLERANCES[args.dtype][0]
    if not error <= allowed:
        raise ArithmeticError(f'off SDPA by {error:.1e} of its norm where '
                              f'both are equal, allowed are {allowed:.0e}')
    return error


def one_row(entry: Tuple, args: Namespace) -> Dict[str, Any]:
    """Checks one entry of FULL or TINY."""
    shape, cell, heads, head_dim, batch, extra = entry
    case = Case(shape, (cell, ), heads, head_dim, batch)
    extra = dict(extra)
    masked = extra.pop('mask', False)
    dtype = extra.pop('dtype', args.dtype)
    args = Namespace(**dict(vars(args), dtype=dtype))
    options = dict(extra, cell_size=cell, backend=args.backend)
    tensors = inputs(case, args, 4)
    grad = tensors.pop()
    row = dict(
        shape=list(shape),
        cell_size=cell,
        heads=heads,
        head_dim=head_dim,
        batch=batch,
        options=dict(extra, mask=masked, dtype=dtype))
    if masked:
        real = torch.rand(batch, *shape, device=args.device) < 0.7
        options['key_mask'] = real
    row['errors'] = check(tensors, grad, options, args)
    if not (masked or 'dropout_p' in extra):
        row['exactness'] = exactness(tensors, options, args)
    return row


def one_run(case: Case, args: Namespace) -> Dict[str, Any]:
    """Forward and backward of one size, once, and seconds with compilation.

    Raises:
        ArithmeticError: if a number is not finite.
    """
    tensors = inputs(case, args, 4)
    grad = tensors.pop()
    synchronize(args.device)
    start = time.perf_counter()
    found = run(tensors, grad, fma_options(case, case.cells[0], args.backend))
    synchronize(args.device)
    seconds = time.perf_counter() - start
    for name, x in found.items():
        if not torch.isfinite(x).all():
            raise ArithmeticError(f'{name} is not finite')
    return dict(first_seconds=seconds)


def explain(device: str) -> Dict[str, str]:
    """Which backend ``'auto'`` takes for images there, and why."""
    return {
        str(dtype).partition('.')[2]:
        explain_backend(
            torch.empty(1, 16, 16, 2, 32, dtype=dtype, device=device))
        for dtype in (torch.bfloat16, torch.float64)
    }


def oracle(args: Namespace) -> Dict[str, float]:
    """The reference itself against the dense oracle, both in float64."""
    worst = {}
    for shape, cell, extra in (((37, 53), 4, {}), ((300, ), 16,
                                                   dict(causal=True)),
                               ((37, 53), 4, dict(pool_queries=True))):
        options = dict(extra, cell_size=cell)
        tensors = [
            torch.randn(1, *shape, 2, 8, dtype=torch.float64) for _ in range(4)
        ]
        tensors = [x.to(args.device) for x in tensors]
        results = [
            run(tensors[:3], tensors[3], dict(options, backend=backend))
            for backend in ('torch', 'naive')
        ]
        for name, x in results[0].items():
            error = float((x - results[1][name]).abs().max())
            worst[name] = max(error, worst.get(name, 0.))
    if not max(worst.values()) <= 1e-10:
        raise ArithmeticError(f'the reference is wrong: {worst}')
    return worst


def part(recorder: Recorder, args: Namespace) -> bool:
    """Checks all entries; returns whether the op was right in each."""
    backends = explain(args.device)
    for dtype, lines in backends.items():
        print(f"'auto' for {dtype} on {args.device}:\n{lines}")
    recorder.set(backends=backends)
    recorder.set(reference=oracle(args))
    good = True
    for entry in TINY if args.tiny else FULL:
        late = recorder.late()
        row, reason = (None, late) if late else attempt(
            lambda entry=entry: one_row(entry, args), args.device)
        if reason:
            row = dict(
                shape=list(entry[0]),
                cell_size=entry[1],
                options=entry[5],
                reason=reason)
            # What a backend refuses to run is not wrong.
            good &= bool(late) or 'cannot run' in reason
        recorder.add(row)
        print('check', {k: v for k, v in row.items() if k != 'heads'})
    case = TINY_LARGEST if args.tiny else LARGEST
    late = recorder.late()
    found, reason = (None, late) if late else attempt(
        lambda: one_run(case, args), args.device)
    row = dict(
        case.describe(),
        cell_size=case.cells[0],
        **found or dict(reason=reason))
    good &= not reason or bool(late) or 'cannot run' in reason
    recorder.add(row)
    print('check, once', row)
    return good and any('errors' in row for row in recorder.rows())
