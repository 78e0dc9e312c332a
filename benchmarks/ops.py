"""The op on a CPU: time and memory, against all tokens and against itself.

    python benchmarks/ops.py                     # all parts, ten minutes
    python benchmarks/ops.py --parts isa memory  # some; the others stay
    python benchmarks/ops.py --quick             # a rehearsal, writes nothing
    python benchmarks/tables.py                  # then: the tables

What is compared runs in turns in one process; the JSON holds medians and
quartiles. Nothing is timed before it has been checked, outputs and gradients:
against the oracle on a small ragged grid, and at the size itself where the
result is known. With equal logits it is the mean of the values; with keys
constant on the coarsest cells, SDPA over all tokens; with such queries,
pooled queries change nothing.

Numbers are of a user's defaults. Environment variables that change them, such
as ``OMP_WAIT_POLICY`` and ``THP_MEM_ALLOC_ENABLE``, are recorded.
"""
import argparse
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from measure import Call, after, compare, run_parts
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, fma1d, fma2d
from fma_vision.utils.timing import peak_memory, peak_resident

RESULT = Path(__file__).parent / 'results/op_cpu.json'
# Largest errors that are rounding; gradients are sums over many queries.
LIMITS = dict(float32=1e-4, float16=2e-2, bfloat16=2e-1)
Tensors = Sequence[Tensor]


# ------------------------------------------------------------------- cases
@dataclass(frozen=True)
class Case:
    """One problem for the op, of one image or sequence."""
    grid: Tuple[int, ...]
    cell_size: int
    heads: int = 3
    head_dim: int = 32
    causal: bool = False
    pool_queries: bool = False
    dtype: str = 'float32'
    backend: str = 'native'

    @property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy(self.grid, self.cell_size, causal=self.causal)

    def tensors(self) -> Tensors:
        """Views of one projection, ``[1, *grid, heads, head_dim]`` each."""
        shape = (1, *self.grid, 3, self.heads, self.head_dim)
        packed = torch.randn(shape, dtype=getattr(torch, self.dtype))
        return packed.unbind(-3)

    def cast(self, tensors: Tensors) -> Tensors:
        """The same numbers in the dtype of this case."""
        dtype = getattr(torch, self.dtype)
        if tensors[0].dtype == dtype:
            return tensors
        return torch.stack(list(tensors), -3).to(dtype).unbind(-3)

    def fma(self, tensors: Tensors) -> Tensor:
        """The op under test."""
        options = dict(
            cell_size=self.cell_size,
            pool_queries=self.pool_queries,
            backend=self.backend)
        if len(self.grid) == 2:
            return fma2d(*tensors, **options)
        return fma1d(*tensors, causal=self.causal, **options)

    def sdpa(self, tensors: Tensors) -> Tensor:
        """SDPA over all tokens, in the layout of the op."""
        # [1, heads, tokens, head_dim]
        heads_first = (x.flatten(1, -3).transpose(1, 2) for x in tensors)
        out = scaled_dot_product_attention(*heads_first, is_causal=self.causal)
        return out.transpose(1, 2).unflatten(1, self.grid)

    def row(self, **more: object) -> dict:
        """What identifies a row of results."""
        tokens = prod(self.grid)
        flops = self.hierarchy.flops(
            self.heads, self.head_dim, pool_queries=self.pool_queries)
        everything = tokens * (tokens + 1) // 2 if self.causal else tokens**2
        return dict(
            asdict(self),
            flops=flops,
            pairs=flops // (4 * self.heads * self.head_dim),
            all_pairs=everything,
            **more)


def call(function: Callable[[Tensors], Tensor], tensors: Tensors,
         mode: str) -> Call:
    """``inference``, ``training`` (forward and backward) or ``backward``."""
    if mode == 'inference':
        return partial(function, tensors)
    leaves = [x.detach().requires_grad_() for x in tensors]
    same = torch.Generator().manual_seed(0)
    grad = torch.randn(leaves[0].shape, generator=same).to(leaves[0].dtype)

    @torch.enable_grad()
    def training() -> tuple:
        out = function(leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    if mode == 'training':
        return training
    with torch.enable_grad():
        out = function(leaves)
    return partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)


# ------------------------------------------------------------------ checks
def difference(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


def coarse(x: Tensor, width: int) -> Tensor:
    """The first token of each cell of a width, in all of the cell."""
    for axis, size in enumerate(x.shape[1:-2], 1):
        x = x.index_select(axis, torch.arange(size) // width * width)
    return x


def against_oracle(case: Case) -> Dict[str, float]:
    """Errors of output and gradients, on a small ragged grid."""
    m = case.cell_size
    # Two levels at least; the oracle holds tokens x keys.
    grids = {1: (19 * m + m // 2 + 1, ), 2: (5 * m + 1, 4 * m + 3)}
    small = replace(case, grid=grids[len(case.grid)])
    tensors = small.tensors()
    found, oracle = (
        call(replace(small, backend=backend).fma, tensors, 'training')()
        for backend in (case.backend, 'naive'))
    names = 'out', 'grad_query', 'grad_key', 'grad_value'
    return dict(zip(names, map(difference, found, oracle)))


def check(case: Case,
          tensors: Tensors,
          exact: Optional[Tuple[Tensors, Tensor]] = None) -> Dict[str, float]:
    """The largest errors of the op.

    Args:
        case: What is to be measured.
        tensors: On these.
        exact: Tensors on which SDPA gave this output, and the op must.

    Raises:
        RuntimeError: An error is not rounding.
    """
    query, key, value = tensors
    errors = against_oracle(case)
    mean = value.double().mean(tuple(range(1, value.dim() - 2)), True)
    if case.causal:
        count = torch.arange(1, value.shape[1] + 1)[:, None, None]
        mean = value.double().cumsum(1) / count
    errors['mean'] = difference(
        case.fma((query, torch.zeros_like(key), value)), mean)
    if exact is not None:
        inputs, out = exact
        errors['sdpa'] = difference(case.fma(case.cast(inputs)), out)
    if case.pool_queries:
        width = max(case.hierarchy.widths, default=1)
        asked = coarse(query, width), key, value
        plain = replace(case, pool_queries=False)
        errors['plain'] = difference(case.fma(asked), plain.fma(asked))
    if not all(error <= LIMITS[case.dtype] for error in errors.values()):
        raise RuntimeError(f'the op is wrong: {errors} for {case}; nothing '
                           'was timed')
    return errors


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


PARTS = {
    part.__name__: part
    for part in (speed2d, speed1d, pooled, memory, scaling, isa, dtypes,
                 threads)
}


def main(argv: Optional[List[str]] = None) -> None:
    run_parts(__file__, __doc__, PARTS, RESULT, argv, ['memory'])


if __name__ == '__main__':
    main()
