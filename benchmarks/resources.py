"""Compiles the Triton kernels offline: registers, spills, shared memory.

    python benchmarks/resources.py                # the main table
    python benchmarks/resources.py --targets 90 --jobs 4

Needs no GPU: Triton's own assembler makes the machine code of every launch
configuration for each target, and a disassembler reads what it takes. Exits
with 1 if a kernel spills registers or takes more shared memory than the
target has.
"""
import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fma_kernels import Hierarchy
from fma_kernels.backends import triton as fused
from fma_kernels.backends.triton import (ancestors, call, configs, keys,
                                         pooling, queries, subcells, summaries)
from fma_kernels.options import Inputs, Options
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}


class Case(NamedTuple):
    """A geometry and a shape of heads.

    ``masked`` also turns dropout on; ``wide`` takes 64-bit offsets.
    """
    name: str
    shape: Tuple[int, ...]
    cell_size: int
    head_dim: int
    dtype: str
    num_levels: int = None
    rank: int = 1
    causal: bool = False
    masked: bool = False
    heads: int = 3
    wide: bool = False
    pooled: bool = False


def cases(dims=(32, 64, 128), dtypes=('bf16', 'fp32')) -> List[Case]:
    """Every launch configuration, and the switches that change a kernel."""
    geometries = [
        ('2D cell 8', (56, 56), 8, None, 1, False),
        ('2D cell 4', (56, 56), 4, None, 1, False),
        ('1D cell 128', (4096, ), 128, None, 1, True),
        ('1D cell 64', (4096, ), 64, None, 1, True),
    ]
    found = [
        Case(name, shape, cell, dim, dtype, levels, rank, causal)
        for name, shape, cell, levels, rank, causal in geometries
        for dim in dims for dtype in dtypes
    ]
    return found + [
        Case('2D masks', (56, 56), 8, 32, 'bf16', masked=True),
        Case('2D rank 2', (56, 56), 8, 32, 'bf16', rank=2),
        Case('2D full', (14, 14), 8, 32, 'bf16', 0),
        Case('2D top list', (56, 56), 8, 32, 'bf16', 1),
        Case('2D dim 48', (56, 56), 8, 48, 'fp16'),
        # Sizes of 1 become constants of a kernel.
        Case('2D one head', (14, 14), 4, 32, 'bf16', heads=1),
        Case('1D one head', (150, ), 64, 64, 'bf16', masked=True, heads=1),
        Case('2D wide', (56, 56), 8, 32, 'bf16', wide=True),
        Case('1D wide', (4096, ), 128, 64, 'bf16', causal=True, wide=True),
        Case('1D masks', (4096, ), 128, 64, 'bf16', masked=True),
        Case('2D pooled rank 2', (56, 56), 8, 32, 'fp16', rank=2, pooled=True),
        Case('2D pooled top', (56, 56), 4, 32, 'bf16', 1, pooled=True),
        Case('1D pooled', (4096, ), 64, 64, 'bf16', rank=4, pooled=True),
        *(Case('2D pooled', (56, 56), 8, *heads, pooled=True)
          for heads in ((32, 'bf16'), (64, 'bf16'), (128, 'bf16'),
                        (64, 'fp32'))),
        *(Case(
            '2D pooled masks', (56, 56), 8, *heads, masked=True, pooled=True)
          for heads in ((64, 'bf16'), (128, 'fp32'))),
    ]


class Launch(NamedTuple):
    """What one launch compiles: a kernel, its constants and its types."""
    kernel: str
    constants: Dict[str, object]
    signature: Dict[str, str]
    divisible: Tuple[str, ...]
    options: Dict[str, int]


_TYPES = {
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    torch.float32: '*fp32',
    torch.int64: '*i64',
    torch.int32: '*i32',
    torch.bool: '*i1'
}
_MODULES = {
    'query_kernel': queries,
    'key_kernel': keys,
    'summary_kernel': summaries,
    'gather_kernel': summaries,
    'finest_kernel': pooling,
    'coarser_kernel': pooling,
    'spread_kernel': pooling,
    'subcell_kernel': subcells,
    'subcell_key_kernel': subcells,
    'merge_kernel': ancestors,
    'from_level_kernel': ancestors,
    'from_tokens_kernel': ancestors
}


def describe(kernel, config: dict, arguments: dict) -> Launch:
    """The types that Triton's launcher would find for these arguments."""
    options = {
        name: config[name]
        for name in ('num_warps', 'num_stages', 'maxnreg') if name in config
    }
    values = {
        **arguments,
        **{
            k: v
            for k, v in config.items() if k not in options
        }
    }
    constants, signature, divisible = {}, {}, []
    constant_names = {p.name for p in kernel.params if p.is_constexpr}
    for name in kernel.arg_names:
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            divisible.append(name)
        elif name in constant_names or value == 1 and isinstance(value, int):
            signature[name] = 'constexpr'
            constants[name] = value
        elif isinstance(value, float):
            signature[name] = 'fp32'
        else:
            signature[name] = 'i32' if abs(value) < 2**31 else 'i64'
            if value % 16 == 0:
                divisible.append(name)
    return Launch(kernel.fn.__name__, constants, signature, tuple(divisible),
                  options)


def launches(case: Case, target: int) -> List[Launch]:
    """All kernels of a forward and backward call, none of them run."""
    dtype = DTYPES[case.dtype]
    h = Hierarchy(case.shape, case.cell_size, case.num_levels, case.rank,
                  case.causal).trimmed()
    # As many as FMA-T's first stage has, views of one projection.
    q, k, v = torch.empty((1, *case.shape, 3, case.heads, case.head_dim),
                          dtype=dtype).unbind(-3)
    mask = torch.ones((1, *case.shape), dtype=bool) if case.masked else None
    found = []

    def record(kernel, programs, config, arguments):
        found.append(describe(kernel, config, arguments))

    places = [ancestors, call, keys, pooling, queries, subcells, summaries]
    patches = [mock.patch.object(place, 'run', record) for place in places]
    patches.append(
        mock.patch.object(configs, 'capability', lambda device: target))
    patches += [
        mock.patch.object(place, 'wide', lambda *_: True)
        for place in (keys, queries, summaries) if case.wide
    ]
    for patch in patches:
        patch.start()
    try:
        summary = torch.empty((1, h.num_summaries, case.heads, case.head_dim),
                              dtype=dtype)
        (_pooled if case.pooled else _plain)((q, k, v), summary, mask, h)
        if h.num_levels:
            fused.pool(k, mask, h)
            fused.pool_backward(summary, mask, h)
            fused.pool_backward(summary, mask, h, torch.empty_like(k))
    finally:
        for patch in patches:
            patch.stop()
    return found


def _dropout(mask: Optional[Tensor]) -> Tuple[Options, Optional[Tensor]]:
    """Options and seed: a mask turns dropout on."""
    if mask is None:
        return Options(scale=0.1), None
    return Options(scale=0.1, dropout_p=0.1), torch.tensor(1)


def _plain(qkv: Tuple[Tensor, ...], summary: Tensor, mask: Optional[Tensor],
           h: Hierarchy) -> None:
    """Forward and backward of plain queries."""
    options, seed = _dropout(mask)
    inputs = Inputs(*qkv, summary, summary, mask, seed)
    results = fused.forward(inputs, h, options)
    fused.backward(*results, inputs, *results, h, options)


def _pooled(qkv: Tuple[Tensor, ...], summary: Tensor, mask: Optional[Tensor],
            h: Hierarchy) -> None:
    """Forward and backward of pooled queries, far and near field."""
    options, seed = _dropout(mask)
    inputs = summary, summary, summary, mask, seed
    far = fused.far_forward(*inputs, h, options)
    fused.far_backward(*far, *inputs, *far, h, options)
    level = (x[:, :h.level_sizes[0]] for x in far)
    inputs = *qkv, *level, mask, seed
    results = fused.near_forward(*inputs, h, options)
    fused.near_backward(*results, *inputs, *results, h, options)


_DONE: Dict[str, Dict[str, int]] = {}


def resources(launch: Launch, target: int) -> Dict[str, int]:
    """:func:`compile_launch`, once for equal launches of a process."""
    key = f'{launch} {target}'
    if key not in _DONE:
        _DONE[key] = compile_launch(launch, target)
    return _DONE[key]


def compile_launch(launch: Launch, target: int) -> Dict[str, int]:
    """Registers of a thread, bytes spilled and bytes of shared memory."""
    kernel = getattr(_MODULES[launch.kernel], launch.kernel)
    names = list(launch.signature)
    source = ASTSource(
        kernel,
        launch.signature,
        constexprs={
            (names.index(name), ): value
            for name, value in launch.constants.items()
        },
        attrs={
            (names.index(name), ): [['tt.divisibility', 16]]
            for name in launch.divisible
        })
    compiled = triton.compile(
        source, target=GPUTarget('cuda', target, 32), options=launch.options)
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        text = subprocess.run([tool, '--dump-resource-usage', file.name],
                              check=True,
                              capture_output=True,
                              text=True).stdout
    usage = dict(
        pair.split(':')[:2] for pair in text.split('\n')[-2].split()
        if ':' in pair)
    return dict(
        registers=int(usage['REG']),
        spilled=int(usage['STACK']),
        shared=compiled.metadata.shared)


def examine(job: Tuple[Case, int]) -> List[dict]:
    """One row for every kernel of a case and target."""
    case, target = job
    rows, seen = [], set()
    for launch in launches(case, target):
        key = repr(launch)
        if key in seen:
            continue
        seen.add(key)
        name = launch.kernel
        if launch.constants.get('BACKWARD'):
            name += ' backward'
        blocks = {
            k[6:]: v
            for k, v in launch.constants.items()
            if k.startswith('BLOCK_') and k != 'BLOCK_D'
        }
        rows.append(
            dict(
                case=case.name,
                head_dim=case.head_dim,
                dtype=case.dtype,
                target=f'sm_{target}',
                kernel=name,
                blocks=' '.join(f'{k}{v}' for k, v in blocks.items()),
                warps=launch.options['num_warps'],
                stages=launch.options.get('num_stages', 3),
                limit=configs.SHARED_MEMORY[target],
                **resources(launch, target)))
    return rows


COLUMNS = ('target', 'case', 'head_dim', 'dtype', 'kernel', 'blocks', 'warps',
           'stages', 'registers', 'spilled', 'shared')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--targets', type=int, nargs='+', default=[80, 90, 100])
    parser.add_argument('--dims', type=int, nargs='+', default=[32, 64, 128])
    parser.add_argument(
        '--dtypes', nargs='+', choices=DTYPES, default=['bf16', 'fp32'])
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--json', type=Path, help='write the rows here')
    args = parser.parse_args()
    jobs = [(case, target) for target in args.targets
            for case in cases(args.dims, args.dtypes)]
    failed, rows = 0, []
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(examine, jobs):
            for row in found:
                bad = row['spilled'] or row['shared'] > row['limit']
                failed += bool(bad)
                rows.append(row)
                print(
                    *(f'{row[name]!s:{width}}'
                      for name, width in zip(COLUMNS, (6, 16, 4, 5, 23, 12, 2,
                                                       2, 4, 4, 7))),
                    'BAD' if bad else '',
                    flush=True)
    if args.json:
        environment = collect_environment('cpu')
        write_json(args.json, dict(environment=environment, rows=rows))
    sys.exit(f'{failed} kernels spill or do not fit' if failed else 0)


if __name__ == '__main__':
    main()
