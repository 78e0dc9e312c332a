"""Compiles the Triton kernels offline: registers, spills, shared memory.

Needs no GPU: Triton's own assembler makes the machine code of every launch
configuration for a target, and a disassembler reads what it takes. Run as a
script, for the targets that it is given, it writes a JSON object a kernel and
line: interpreted functions, as in the other tests, cannot be compiled.
"""
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
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

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}


class Case(NamedTuple):
    """A geometry and a shape of heads.

    ``masked`` also turns dropout on; ``wide`` takes 64-bit offsets.
    """
    name: str
    shape: Tuple[int, ...]
    cell_size: int
    head_dim: int = 32
    dtype: str = 'bf16'
    num_levels: Optional[int] = None
    rank: int = 1
    causal: bool = False
    masked: bool = False
    heads: int = 3
    wide: bool = False
    pooled: bool = False


def cases() -> List[Case]:
    """Every launch configuration, and the switches that change a kernel."""
    image, text = ((56, 56), 8), ((4096, ), 64)
    found = [
        Case(name, shape, cell, dim, dtype, causal=len(shape) == 1)
        for name, shape, cell in (('2D cell 8', (56, 56),
                                   8), ('2D cell 4', (56, 56),
                                        4), ('1D cell 128', (4096, ), 128),
                                  ('1D cell 64', (4096, ), 64))
        for dim in (32, 64, 128) for dtype in ('bf16', 'fp32')
    ]
    found += [
        Case('2D masks', *image, masked=True),
        Case('2D rank 2', *image, rank=2),
        Case('2D full', (14, 14), 8, num_levels=0),
        Case('2D top list', *image, num_levels=1),
        Case('2D dim 48', *image, 48, 'fp16'),
        # Sizes of 1 become constants of a kernel.
        Case('2D one head', (14, 14), 4, heads=1),
        Case('1D one head', (150, ), 64, 64, masked=True, heads=1),
        Case('2D wide', *image, wide=True),
        Case('1D wide', (4096, ), 128, 64, causal=True, wide=True),
        Case('1D masks', (4096, ), 128, 64, masked=True),
        Case('2D pooled rank 2', *image, 32, 'fp16', rank=2, pooled=True),
        Case('2D pooled top', (56, 56), 4, num_levels=1, pooled=True),
        Case('1D pooled', *text, 64, rank=4, pooled=True),
    ]
    for heads in ((32, 'bf16'), (64, 'bf16'), (128, 'bf16'), (64, 'fp32')):
        found.append(Case('2D pooled', *image, *heads, pooled=True))
    for heads in ((64, 'bf16'), (128, 'fp32')):
        found.append(
            Case('2D pooled masks', *image, *heads, masked=True, pooled=True))
    return found


class Launch(NamedTuple):
    """What one launch compiles: a kernel, its constants and its types."""
    kernel: triton.runtime.JITFunction
    constants: Dict[str, object]
    signature: Dict[str, str]
    divisible: Tuple[str, ...]
    options: Dict[str, int]

    @property
    def name(self) -> str:
        backward = ' backward' if self.constants.get('BACKWARD') else ''
        return self.kernel.fn.__name__ + backward


_TYPES = {
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    torch.float32: '*fp32',
    torch.int64: '*i64',
    torch.int32: '*i32',
    torch.bool: '*i1'
}
_OPTIONS = 'num_warps', 'num_stages', 'maxnreg'


def describe(kernel: triton.runtime.JITFunction, config: dict,
             arguments: dict) -> Launch:
    """The types that Triton's launcher would find for these arguments."""
    options = {name: config[name] for name in _OPTIONS if name in config}
    values = {**arguments, **config}
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
    return Launch(kernel, constants, signature, tuple(divisible), options)


def launches(case: Case, target: int) -> Dict[str, Launch]:
    """All kernels of a forward and backward call, none of them run."""
    found = {}

    def record(kernel, programs, config, arguments):
        launch = describe(kernel, config, arguments)
        found[repr(launch)] = launch

    with ExitStack() as stack:

        def patch(place: object, name: str, value: Callable) -> None:
            stack.enter_context(mock.patch.object(place, name, value))

        for place in (ancestors, call, keys, pooling, queries, subcells,
                      summaries):
            patch(place, 'run', record)
        patch(configs, 'capability', lambda device: target)
        for place in (keys, queries, summaries) if case.wide else ():
            patch(place, 'wide', lambda *_: True)
        run(case)
    return found


def run(case: Case) -> None:
    """Forward and backward pass, and pooling; ``masked`` has dropout."""
    dtype = DTYPES[case.dtype]
    h = Hierarchy(case.shape, case.cell_size, case.num_levels, case.rank,
                  case.causal).trimmed()
    # Views of one projection.
    qkv = torch.empty((1, *case.shape, 3, case.heads, case.head_dim),
                      dtype=dtype).unbind(-3)
    summary = torch.empty((1, h.num_summaries, case.heads, case.head_dim),
                          dtype=dtype)
    mask = seed = None
    if case.masked:
        mask, seed = torch.ones((1, *case.shape), dtype=bool), torch.tensor(1)
    options = Options(scale=.1, dropout_p=.1 if case.masked else 0.)
    if case.pooled:
        inputs = summary, summary, summary, mask, seed
        far = fused.far_forward(*inputs, h, options)
        fused.far_backward(*far, *inputs, *far, h, options)
        level = (x[:, :h.level_sizes[0]] for x in far)
        inputs = *qkv, *level, mask, seed
        results = fused.near_forward(*inputs, h, options)
        fused.near_backward(*results, *inputs, *results, h, options)
    else:
        inputs = Inputs(*qkv, summary, summary, mask, seed)
        results = fused.forward(inputs, h, options)
        fused.backward(*results, inputs, *results, h, options)
    if h.num_levels:
        fused.pool(qkv[1], mask, h)
        fused.pool_backward(summary, mask, h)
        fused.pool_backward(summary, mask, h, torch.empty_like(qkv[1]))


def resources(launch: Launch, target: int) -> Dict[str, int]:
    """Registers of a thread, bytes spilled and bytes of shared memory."""
    names = list(launch.signature)
    source = ASTSource(
        launch.kernel,
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


_DONE: Dict[str, Dict[str, int]] = {}  # equal launches of a process


def examine(job: Tuple[Case, int]) -> List[dict]:
    """One row for every kernel of a case and target."""
    case, target = job
    rows = []
    for key, launch in launches(case, target).items():
        key = f'{key} {target}'
        if key not in _DONE:
            _DONE[key] = resources(launch, target)
        rows.append(
            dict(
                target=target,
                case=case.name,
                head_dim=case.head_dim,
                dtype=case.dtype,
                kernel=launch.name,
                limit=configs.SHARED_MEMORY[target],
                **_DONE[key]))
    return rows


def examine_all(targets: List[int]) -> Iterator[dict]:
    """The rows of all cases, in several processes."""
    jobs = [(case, target) for target in targets for case in cases()]
    with ProcessPoolExecutor(min(os.cpu_count(), 8)) as pool:
        for rows in pool.map(examine, jobs):
            yield from rows


if __name__ == '__main__':
    for row in examine_all(list(map(int, sys.argv[1:]))):
        print(json.dumps(row), flush=True)
