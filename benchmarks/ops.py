"""The op: time and memory, against all tokens, rivals and itself.

    python benchmarks/ops.py                     # on a CPU, ten minutes
    python benchmarks/ops.py --parts isa memory  # some; the others stay
    python benchmarks/ops.py --quick             # a rehearsal, writes nothing
    python benchmarks/ops.py --device cuda       # a GPU; see gpu.sh, too
    python benchmarks/tables.py                  # then: the tables

What is compared runs in turns in one process; the JSON holds medians and
quartiles. Nothing is timed before it has been checked, outputs, lse and
gradients: against float64 at the size itself, and against SDPA over all
tokens, with keys constant on the coarsest cells, where both are equal. What
cannot run says why in its row.

``--parts kernels`` says where the time goes on a GPU, kernel by kernel;
Nsight Compute looks inside: ``ncu --set full -k regex:_kernel -c 20 python
benchmarks/ops.py --device cuda --quick --parts op2d``.
"""
import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from unittest.mock import patch

import gpu_check
import torch
from case import TOLERANCES, Case, Op, Tensors, call
from case import check as check_case
from measure import attempt, compare, each, parser, peak_resident, run_parts
from rivals.near import natten, windows
from torch.profiler import ProfilerActivity

from fma_vision.engine.timing import peak_memory

BOTH = 'inference', 'training'
# Calls on their tensors, by name.
Own = Dict[str, Tuple[Op, Tensors]]
# Makes a call for a case, from those that are right.
Rival = Callable[[Case, Own], Tuple[Op, Tensors]]


def side_by_side(cases: Sequence[Case],
                 args: argparse.Namespace,
                 modes: Sequence[str] = BOTH,
                 forms: Optional[Dict[str, dict]] = None,
                 shared: Optional[Dict[str, Op]] = None,
                 rivals: Optional[Dict[str, Rival]] = None) -> List[dict]:
    """Checks all cases, and times them in turns, mode by mode.

    Args:
        cases: One row each and mode.
        args: The command line.
        modes: As :func:`call` takes them.
        forms: What a row times: changes of the case, by name. All but the
            first may fail alone.
        shared: What is timed once for all cases: they share their tokens.
        rivals: What a row times beside, by name.
    """
    forms, shared, rivals = forms or dict(fma={}), shared or {}, rivals or {}
    tensors, subjects = cases[0].tensors(), []
    for case in cases:
        if not shared and case is not cases[0]:
            tensors = case.tensors()
        made = {k: replace(case, **x) for k, x in forms.items()}
        given = {k: (x, x.cast(tensors)) for k, x in made.items()}
        checks = {
            k: partial(check_case, *x, 'sdpa' in shared)
            for k, x in given.items()
        }
        errors, wrong = each(checks, case.device)
        if next(iter(forms)) in wrong:
            raise ArithmeticError(wrong[next(iter(forms))])
        own = {k: (given[k][0].fma, given[k][1]) for k in errors}
        beside = {k: partial(x, case, own) for k, x in rivals.items()}
        more, missing = each(beside, case.device)
        subjects.append((case, own | more, errors, wrong | missing))
    rows = []
    for mode in modes:
        entries = []
        for case, own, errors, reasons in subjects:
            row = case.row(mode=mode, errors=errors, reasons=reasons)
            row['least_bytes'] = least_bytes(case, mode)
            calls = {k: call(*x, mode) for k, x in own.items()}
            entries.append((row, calls))
        others = {k: call(op, tensors, mode) for k, op in shared.items()}
        rows += compare(entries, args, **others)
    return rows


def least_bytes(case: Case, mode: str) -> int:
    """Bytes that no implementation can do without moving.

    Forward: query, key and value in, output and lse out, summaries out and
    in. Backward: query, key, value, output, its gradient and lse in, three
    gradients out; summaries in, their gradients out and in.
    """
    hierarchy = case.hierarchy
    channel = case.batch * case.heads
    row = channel * case.head_dim * getattr(torch, case.dtype).itemsize
    tokens, summaries = hierarchy.num_tokens, 2 * hierarchy.num_summaries
    lse = 4 * tokens * channel
    forward = (4 * tokens + 2 * summaries) * row + lse
    backward = (8 * tokens + 3 * summaries) * row + lse
    return forward + backward * (mode == 'training')


# ----------------------------------------------------------- parts for CPUs
def images(args: argparse.Namespace, side: int, **options) -> List[Case]:
    """Square ones, cells 8 and 4; an eighth of the side in a rehearsal."""
    grid = (side // 8 if args.quick else side, ) * 2
    return [Case(grid, cell, **options) for cell in (8, 4)]


def sequence(args: argparse.Namespace, length: int, cell: int,
             **options) -> Case:
    """A 32nd of the tokens in a rehearsal."""
    grid = (length // 32 if args.quick else length, )
    return Case(grid, cell, **options)


causal = partial(sequence, cell=64, heads=8, head_dim=64, causal=True)
linear = partial(sequence, heads=2, pool_queries=True)


def speed2d(args: argparse.Namespace) -> Iterator[dict]:
    """Images against SDPA over all tokens, the PyTorch backend beside."""
    beside = dict(fma={}, torch=dict(backend='torch'))
    for side, modes, forms in ((128, BOTH, beside), (256, BOTH[:1], None)):
        cases = images(args, side)
        shared = dict(sdpa=cases[0].sdpa)
        yield from side_by_side(cases, args, modes, forms, shared)


def speed1d(args: argparse.Namespace) -> List[dict]:
    """Causal sequences against SDPA over all tokens to the left."""
    case = causal(args, 32768)
    return side_by_side([case], args, shared=dict(sdpa=case.sdpa))


def pooled(args: argparse.Namespace) -> Iterator[dict]:
    """Pooled queries against the plain form; growth for 4x the tokens."""
    families = [[linear(args, 2**k, cell) for k in (14, 16, 18)]
                for cell in (8, 4)]
    families += zip(*(images(args, n, heads=2, pool_queries=True)
                      for n in (128, 256, 512)))
    forms = dict(pooled={}, plain=dict(pool_queries=False))
    for cases in families:
        found = side_by_side(cases, args, forms=forms)
        for before, row in zip(found, found[1:]):
            if row['mode'] == before['mode']:
                row['growth'] = {
                    name: x['median'] / before['seconds'][name]['median']
                    for name, x in row['seconds'].items()
                }
        yield from found


def memory(args: argparse.Namespace) -> Iterator[dict]:
    """Peak bytes beyond the inputs, output included, over those of q + k + v.

    ``tensors`` is what PyTorch's allocator handed out. ``process`` is how
    much larger the process was: scratch that C takes for itself is in it.
    """
    cases = images(args, 256) + images(args, 256, pool_queries=True)
    cases += [causal(args, 2**15), *(linear(args, 2**k, 8) for k in (16, 18))]
    for case in cases:
        tensors = [x.contiguous() for x in case.tensors()]
        errors = check_case(case, tensors)
        size = sum(x.nbytes for x in tensors)
        for mode in BOTH:
            run = call(case.fma, tensors, mode)
            run()
            process = peak_resident(run)
            yield case.row(
                mode=mode,
                errors=errors,
                tensors=peak_memory(run) / size,
                process=process and process / size)


@patch.dict(os.environ)
def isa(args: argparse.Namespace) -> List[dict]:
    """The C kernels' instruction sets."""
    small, forms = Case((4, 4), 2), {}
    for name in ('avx512', 'avx2', 'portable'):
        try:
            replace(small, isa=name).fma(small.tensors())
        except ValueError as error:  # not on this processor
            print(error)
        else:
            forms[name] = dict(isa=name)
    return side_by_side(images(args, 128), args, forms=forms)


def dtypes(args: argparse.Namespace) -> List[dict]:
    """Half precision beside float32."""
    forms = {name: dict(dtype=name) for name in sorted(TOLERANCES)[::-1]}
    return side_by_side(images(args, 128), args, forms=forms)


# ---------------------------------------------------------- parts for GPUs
# Stage 1 of FMA-T (images of 224 to 2048 pixels a side), then a language
# model's layer: sizes and batches. flex_attention takes long to compile, so
# one size has it, and comes last.
IMAGES = {56: 64, 128: 16, 256: 4, 512: 1}
SEQUENCES = {2**12: 16, 2**14: 4, 2**18: 1, 2**20: 1}
# SDPA over all tokens is left out beyond: it would take minutes.
MOST_FLOPS = 1e15


def gpu_cases(args: argparse.Namespace, grid: Sequence[int],
              batch: int) -> List[Case]:
    """Those of FMA-T, or of a language model; coarse cells first."""
    shared = dict(
        batch=batch,
        dtype='bfloat16',
        backend=args.backend,
        device=args.device)
    if len(grid) == 2:
        cells = (4, ) if args.quick else (8, 4)
        return [Case(grid, cell, **shared) for cell in cells]
    shared.update(heads=2 if args.quick else 16, head_dim=64, causal=True)
    return [Case(grid, cell, **shared) for cell in (128, 64)]


def op2d(args: argparse.Namespace) -> Iterator[dict]:
    """Images against what a user would take instead."""
    for side, batch in ({} if args.quick else IMAGES).items():
        yield from against_rivals(args, (side, side), batch)
    last = ((24, 24), 2) if args.quick else ((256, 256), 1)
    yield from against_rivals(args, *last, flex=True)


def op1d(args: argparse.Namespace) -> Iterator[dict]:
    """Causal sequences against what a user would take instead."""
    for length, batch in ({300: 1} if args.quick else SEQUENCES).items():
        yield from against_rivals(args, (length, ), batch)
    if not args.quick:
        yield from against_rivals(args, (2**16, ), 1, flex=True)


def against_rivals(args: argparse.Namespace,
                   grid: Sequence[int],
                   batch: int,
                   flex: bool = False) -> List[dict]:
    """FMA beside its rivals, all in turns; a reason where it is wrong."""
    cases = gpu_cases(args, grid, batch)
    case, shared, forms = cases[0], {}, dict(fma={})
    rivals: Dict[str, Rival] = dict(natten=natten)
    work = 4 * case.head_dim * case.heads * case.batch * case.all_pairs
    if work <= MOST_FLOPS:
        shared['sdpa'] = case.sdpa
        shared['sdpa_cudnn'] = partial(case.sdpa, kernel='CUDNN_ATTENTION')
    if not case.causal:
        shared['windows'] = windows
        forms['pooled'] = dict(pool_queries=True)
    if flex:
        forms['flex'] = dict(backend='flex')
        rivals['flex_kernel'] = flex_kernel
    measured = partial(side_by_side, cases, args, BOTH, forms, shared, rivals)
    found, reason = attempt(measured, args.device)
    return found or [case.row(reason=reason)]


def flex_kernel(case: Case, own: Own) -> Tuple[Op, Tensors]:
    """The kernel of flex_attention alone, on tokens in its order."""
    from rivals.flex import arrange, attend
    arranged = arrange(*own['flex'][1], case.hierarchy.trimmed())
    return lambda x: attend(*x, *arranged[3:], False)[0], arranged[:3]


def machine(args: argparse.Namespace) -> List[dict]:
    """The machine's own rates: a square matrix product and a copy."""
    side, numel = (64, 2**12) if args.quick else (8192, 2**30)
    # Random numbers: constant ones toggle fewer bits and run faster.
    a, b, source = (
        torch.randn(shape, device=args.device).bfloat16()
        for shape in ((side, side), (side, side), (numel, )))
    target = torch.empty_like(source)
    calls = dict(
        matmul=partial(torch.mm, a, b), copy=partial(target.copy_, source))
    row, = compare([({}, calls)], args)
    seconds = {name: x['median'] for name, x in row['seconds'].items()}
    rates = dict(
        flops=2 * side**3 / seconds['matmul'],
        bytes=2 * source.nbytes / seconds['copy'])
    return [dict(row, rates=rates)]


def check(args: argparse.Namespace) -> Iterator[dict]:
    """Is the op right, at real sizes and with every switch?"""
    return gpu_check.rows(args)


def kernels(args: argparse.Namespace) -> Iterator[dict]:
    """Microseconds of each kernel in a call."""
    sizes = ((14, 14), 64), ((56, 56), 64), ((256, 256), 1), ((65536, ), 1)
    on_gpu, times = torch.device(args.device).type == 'cuda', 5
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    for size in [((24, 24), 1)] if args.quick else sizes:
        for case in gpu_cases(args, *size):
            tensors = case.tensors()
            errors = check_case(case, tensors)
            for mode in BOTH:
                run = call(case.fma, tensors, mode)
                run()  # compiles
                with torch.profiler.profile(activities=kinds) as profile:
                    for _ in range(times):
                        run()
                    if on_gpu:
                        torch.cuda.synchronize()
                taken = {
                    x.key[:160]:
                    (x.self_device_time_total or x.self_cpu_time_total) / times
                    for x in profile.key_averages()
                }
                longest = sorted(taken, key=taken.get, reverse=True)[:30]
                found = {x: taken[x] for x in longest}
                yield case.row(mode=mode, errors=errors, microseconds=found)


PARTS = dict(
    cpu=(speed2d, speed1d, pooled, memory, isa, dtypes),
    cuda=(check, machine, op2d, op1d, kernels))


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the parts; 1 if the op failed where it was to be timed."""
    return run_parts(parser(__doc__), 'op', PARTS, argv, fresh=[memory])


if __name__ == '__main__':
    sys.exit(main())
