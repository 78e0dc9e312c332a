"""The op: time and memory, against all tokens, rivals and itself.

    python benchmarks/ops.py                     # on a CPU, ten minutes
    python benchmarks/ops.py --parts isa memory  # some; the others stay
    python benchmarks/ops.py --quick             # a rehearsal, writes nothing
    python benchmarks/ops.py --device cuda       # a GPU; see gpu.sh, too
    python benchmarks/tables.py                  # then: the tables

What is compared runs in turns in one process; the JSON holds medians and
quartiles. Nothing is timed before it has been checked, outputs and gradients:
against the oracle on a small ragged grid, and at the size itself where the
result is known. With equal logits it is the mean of the values; with keys
constant on the coarsest cells, SDPA over all tokens; with such queries,
pooled queries change nothing. On a GPU ``gpu_check`` compares all of it with
float64, at the size itself; what cannot run there says why in its row.

Numbers are of a user's defaults. Environment variables that change them, such
as ``OMP_WAIT_POLICY`` and ``THP_MEM_ALLOC_ENABLE``, are recorded.
"""
import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Dict, Iterator, List, Optional, Sequence

import gpu_check
import torch
from case import LIMITS, Case, Op, Tensors, call, check, coarse
from measure import (Call, after, attempt, compare, peak_resident, run_parts,
                     try_calls)
from torch import nn

from fma_vision.engine.timing import peak_memory


def side_by_side(cases: Sequence[Case],
                 modes: Sequence[str],
                 args: argparse.Namespace,
                 variants: Optional[Dict[str, dict]] = None,
                 settings: Optional[Dict[str, Call]] = None,
                 sdpa: bool = False) -> List[dict]:
    """Checks all cases, and times them in turns, mode by mode.

    Args:
        cases: One row each and mode.
        modes: As :func:`call` takes them.
        args: The command line.
        variants: What else a row times: changes of the case, by name.
        settings: Or under which settings, by name.
        sdpa: Also time SDPA, once for all cases: they share their tokens.
    """
    inputs, exact = [case.tensors() for case in cases], None
    if sdpa:
        inputs = inputs[:1] * len(cases)
        query, key, value = inputs[0]
        width = max(w for case in cases for w in (1, *case.hierarchy.widths))
        blurred = query, coarse(key, width), value
        exact = blurred, cases[0].sdpa(blurred)
    variants, settings, checked = variants or {}, settings or {}, []
    for case, tensors in zip(cases, inputs):
        own, errors = {}, {}
        for name in settings or variants or ['fma']:
            other = replace(case, **variants.get(name, {}))
            setting = settings.get(name, int)  # int does nothing
            own[name] = setting, other.fma, other.cast(tensors)
            errors[name] = after(setting, check)(other, own[name][-1], exact)
        checked.append((own, errors))
    rows = []
    for mode in modes:
        entries = [(case.row(mode=mode, errors=errors), {
            name: after(setting, call(fma, tensors, mode))
            for name, (setting, fma, tensors) in own.items()
        }) for case, (own, errors) in zip(cases, checked)]
        shared = {}
        if sdpa:
            shared['sdpa'] = call(cases[0].sdpa, inputs[0], mode)
        rows += compare(entries, args.repeats, args.least, **shared)
    return rows


# ------------------------------------------------------------------- parts
BOTH = 'inference', 'training'


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


def speed2d(args: argparse.Namespace) -> List[dict]:
    """Images against SDPA over all tokens, the PyTorch backend beside."""
    beside = dict(fma={}, torch=dict(backend='torch'))
    return [
        *side_by_side(images(args, 128), BOTH, args, beside, sdpa=True),
        *side_by_side(images(args, 256), BOTH[:1], args, sdpa=True)
    ]


def speed1d(args: argparse.Namespace) -> List[dict]:
    """Causal sequences against SDPA over all tokens to the left."""
    return side_by_side([causal(args, 32768)], BOTH, args, sdpa=True)


def pooled(args: argparse.Namespace) -> List[dict]:
    """Pooled queries against the plain form; growth for 4x the tokens."""
    families = [[linear(args, 2**k, cell) for k in (14, 16, 18)]
                for cell in (8, 4)]
    families += zip(*(images(args, n, heads=2, pool_queries=True)
                      for n in (128, 256, 512)))
    forms, rows = dict(pooled={}, plain=dict(pool_queries=False)), []
    for cases in families:
        found = side_by_side(cases, BOTH, args, forms)
        for before, row in zip(found, found[1:]):
            if row['mode'] == before['mode']:
                row['growth'] = {
                    name:
                    row['seconds'][name]['median'] /
                    before['seconds'][name]['median']
                    for name in forms
                }
        rows += found
    return rows


def memory(args: argparse.Namespace) -> List[dict]:
    """Peak bytes beyond the inputs, output included, over those of q + k + v.

    ``tensors`` is what PyTorch's allocator handed out. ``process`` is how
    much larger the process was: scratch that C takes for itself is in it.
    """
    cases = images(args, 256) + images(args, 256, pool_queries=True)
    cases += [causal(args, 2**15), *(linear(args, 2**k, 8) for k in (16, 18))]
    rows = []
    for case in cases:
        tensors = [x.contiguous() for x in case.tensors()]
        errors = check(case, tensors)
        size = sum(x.numel() * x.element_size() for x in tensors)
        for mode in BOTH:
            run = call(case.fma, tensors, mode)
            run()
            process = peak_resident(run)
            rows.append(
                case.row(
                    mode=mode,
                    errors=errors,
                    qkv_bytes=size,
                    tensors=peak_memory(run) / size,
                    process=process and process / size))
    return rows


def scaling(args: argparse.Namespace) -> List[dict]:
    """Time per visited pair and head, over the median of the sizes."""
    families = [
        *zip(*(images(args, 2**k) for k in range(6, 11))),
        [causal(args, 2**k) for k in range(13, 18)]
    ]
    rows = []
    for cases in families:
        found = side_by_side(cases, BOTH[:1], args)
        each = [
            row['seconds']['fma']['median'] / row['pairs'] / row['heads']
            for row in found
        ]
        for row, seconds in zip(found, each):
            row.update(
                nanoseconds_per_pair=seconds * 1e9,
                over_median=seconds / median(each))
        rows += found
    return rows


def isa(args: argparse.Namespace) -> List[dict]:
    """The C kernels' instruction sets, forward and backward apart."""
    settings, small = {}, Case((4, 4), 2)
    for name in ('avx512', 'avx2', 'portable'):
        setting = partial(os.environ.__setitem__, 'FMA_KERNELS_ISA', name)
        try:
            after(setting, small.fma)(small.tensors())
        except ValueError as error:  # not on this processor
            print(error)
        else:
            settings[name] = setting
    return side_by_side(
        images(args, 128), ('inference', 'backward'), args, settings=settings)


def dtypes(args: argparse.Namespace) -> List[dict]:
    """Half precision beside float32."""
    variants = {name: dict(dtype=name) for name in LIMITS}
    return side_by_side(images(args, 128), BOTH, args, variants)


def threads(args: argparse.Namespace) -> List[dict]:
    """All threads against one; and the op between two linear layers.

    PyTorch's idle threads spin for a while before they sleep, and may take
    the cores from those of the op: ``excess`` is the time of the whole over
    that of the op and the layers, each alone.
    """
    settings = {
        f'{count} threads': partial(torch.set_num_threads, count)
        for count in (args.threads, 1)
    }
    rows = side_by_side(images(args, 128), BOTH, args, settings=settings)
    for case in [x for n in (32, 64, 128) for x in images(args, n)]:
        parts = between_layers(case)
        found = compare([(case.row(mode=f'layers, {name}'), {
            k: after(setting, run)
            for k, run in parts.items()
        }) for name, setting in settings.items()], args.repeats, args.least)
        for row in found:
            whole, *alone = (x['median'] for x in row['seconds'].values())
            row['excess'] = whole / sum(alone)
        rows += found
    return rows


def between_layers(case: Case) -> Dict[str, Call]:
    """Linear, op, Linear; and its parts."""
    dim = case.heads * case.head_dim
    qkv, proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    x = torch.randn(1, *case.grid, dim)

    def split() -> Tensors:
        # [1, *grid, 3, heads, head_dim]
        packed = qkv(x).unflatten(-1, (3, case.heads, case.head_dim))
        return packed.unbind(-3)

    return dict(
        whole=lambda: proj(case.fma(split()).flatten(-2)),
        op=partial(case.fma, split()),
        layers=lambda: (split(), proj(x)))


# ---------------------------------------------------------- parts for GPUs
# Stage 1 of FMA-T (images of 224 to 2048 pixels a side), then a language
# model's layer: grid, batch, and whether flex_attention runs beside. That
# takes long to compile, so one size has it, and comes last.
IMAGES = (((56, 56), 64, False), ((128, 128), 16, False),
          ((256, 256), 4, False), ((512, 512), 1, False), ((256, 256), 1,
                                                           True))
SEQUENCES = (((2**12, ), 16, False), ((2**14, ), 4, False),
             ((2**18, ), 1, False), ((2**20, ), 1, False), ((2**16, ), 1,
                                                            True))
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
    for grid, batch, flex in [((24, 24), 2, True)] if args.quick else IMAGES:
        yield from rivals_beside(gpu_cases(args, grid, batch), args, flex)


def op1d(args: argparse.Namespace) -> Iterator[dict]:
    """Causal sequences against what a user would take instead."""
    for grid, batch, flex in [((300, ), 1,
                               False)] if args.quick else SEQUENCES:
        yield from rivals_beside(gpu_cases(args, grid, batch), args, flex)


def rivals_beside(cases: List[Case], args: argparse.Namespace,
                  flex: bool) -> List[dict]:
    """FMA beside its rivals, all in turns; each may fail alone.

    Args:
        cases: They differ in their cells only.
        args: The command line.
        flex: Whether flex_attention is compiled.
    """
    from rivals.near import windows
    case, tensors = cases[0], cases[0].tensors()
    shared: Dict[str, Op] = {}
    work = 4 * case.head_dim * case.heads * case.batch * case.all_pairs
    if work <= MOST_FLOPS:
        shared['sdpa'] = case.sdpa
        shared['sdpa_cudnn'] = partial(case.sdpa, kernel='CUDNN_ATTENTION')
    if len(case.grid) == 2:
        shared['windows'] = windows
    subjects = [own_rivals(case, tensors, flex) for case in cases]
    rows = []
    for mode in BOTH:
        others = {name: call(op, tensors, mode) for name, op in shared.items()}
        peaks, reasons = try_calls(others, case.device)
        others = {name: others[name] for name in peaks}
        entries = []
        for case, (own, errors, failed) in zip(cases, subjects):
            calls = {name: call(*x, mode) for name, x in own.items()}
            own_peaks, own_reasons = try_calls(calls, case.device)
            row = case.row(
                mode=mode,
                errors=errors,
                peak_bytes={
                    **own_peaks,
                    **peaks
                },
                least_bytes=least_bytes(case, mode),
                reasons={
                    **failed,
                    **own_reasons,
                    **reasons
                })
            if 'fma' in own_peaks:
                entries.append((row, {
                    name: calls[name]
                    for name in own_peaks
                }))
            else:
                rows.append(dict(row, reason=row['reasons']['fma']))
        if entries:
            rows += compare(entries, args.repeats, args.least, case.device,
                            **others)
    return rows


def own_rivals(case: Case, tensors: Tensors, flex: bool) -> tuple:
    """What depends on the cells: what runs, its errors, why others do not."""
    from rivals.near import natten
    forms = dict(fma=case)
    if not case.causal:
        forms['pooled'] = replace(case, pool_queries=True)
    if flex:
        forms['flex'] = replace(case, backend='flex')
    own, errors, reasons = {}, {}, {}
    for name, form in forms.items():
        found, reason = attempt(
            gpu_check.check, form, tensors, device=case.device)
        if reason is None:
            own[name], errors[name] = (form.fma, tensors), found
        else:
            reasons[name] = reason
    found, reason = attempt(natten, case, device=case.device)
    if reason is None:
        own['natten'] = found, tensors
    else:
        reasons['natten'] = reason
    if 'flex' in own:  # its kernel alone, on tokens in its order
        from rivals.flex import arrange, attend
        arranged = arrange(*tensors, case.hierarchy.trimmed())
        own['flex_kernel'] = (lambda x: attend(*x, *arranged[3:], False)[0],
                              arranged[:3])
    return own, errors, reasons


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


def machine(args: argparse.Namespace) -> Iterator[dict]:
    """The machine's own rates: a square matrix product and a copy."""
    side, numel = (64, 2**12) if args.quick else (8192, 2**30)
    # Random numbers: constant ones toggle fewer bits and run faster.
    a, b, source = (
        torch.randn(shape, device=args.device).bfloat16()
        for shape in ((side, side), (side, side), (numel, )))
    target = torch.empty_like(source)
    calls = dict(
        matmul=partial(torch.mm, a, b), copy=partial(target.copy_, source))
    try_calls(calls, args.device)
    row, = compare([({}, calls)], args.repeats, args.least, args.device)
    seconds = {name: x['median'] for name, x in row['seconds'].items()}
    yield dict(
        row,
        rates=dict(
            flops=2 * side**3 / seconds['matmul'],
            bytes=2 * source.nbytes / seconds['copy']))


OF_DEVICE = {
    'cpu': (speed2d, speed1d, pooled, memory, scaling, isa, dtypes, threads),
    'cuda': (machine, op2d, op1d)
}
PARTS = {part.__name__: part for part in sum(OF_DEVICE.values(), ())}


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the parts; 1 if the op failed where it was to be timed."""
    default = {
        device: [part.__name__ for part in parts]
        for device, parts in OF_DEVICE.items()
    }
    return run_parts(__file__, __doc__, PARTS, 'op', argv, ('memory', ),
                     default)


if __name__ == '__main__':
    sys.exit(main())
