"""Where the time of the op goes on a GPU: its kernels, one by one.

    python benchmarks/gpu_profile.py
    ncu --clock-control none --set full --nvtx --nvtx-include 'measured/' \\
        python benchmarks/gpu_profile.py --plain  # Nsight Compute looks inside
"""
import argparse
import os
from typing import Dict, Iterator, List, Optional

import torch
from case import Case, call
from gpu_check import check
from measure import Call, parser, record, settle
from torch.autograd import DeviceType

TIMES = 5


def cases(args: argparse.Namespace) -> List[Case]:
    shared = dict(dtype='bfloat16', backend=args.backend, device=args.device)
    if args.quick:
        return [Case((24, 24), 4, **shared)]
    return [
        Case(grid, cell, batch=batch, **shared)
        for grid, batch in (((14, 14), 64), ((56, 56), 64), ((256, 256), 1))
        for cell in (8, 4)
    ] + [
        Case((65536, ), cell, 16, 64, causal=True, **shared)
        for cell in (128, 64)
    ]


def kernels(run: Call, on_gpu: bool) -> List[Dict[str, object]]:
    """Name, calls and microseconds of each kernel in one call."""
    # The profiler's library logs to the console below this level.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(TIMES):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = []
    for event in profile.key_averages():
        total = (
            event.self_device_time_total
            if on_gpu else event.self_cpu_time_total)
        if event.device_type == kind and total:
            rows.append(
                dict(
                    kernel=event.key[:160],
                    calls=event.count / TIMES,
                    microseconds=total / TIMES))
    return sorted(rows, key=lambda row: -row['microseconds'])


def profiles(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each case and mode, from an op that is right."""
    on_gpu = torch.device(args.device).type == 'cuda'
    for case in cases(args):
        tensors = case.tensors()
        errors = check(case, tensors)
        for mode in ('inference', 'training'):
            run = call(case.fma, tensors, mode)
            run()  # compiles
            if args.plain:
                with torch.cuda.nvtx.range('measured'):
                    run()
                continue
            row = case.row(
                mode=mode, errors=errors, kernels=kernels(run, on_gpu)[:30])
            yield row
            for kernel in row['kernels']:
                print(f'  {kernel["microseconds"]:9.1f} us '
                      f'{kernel["calls"]:5.1f} x {kernel["kernel"][:80]}')


def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        '--plain', action='store_true', help='for another profiler')
    args = settle(options.parse_args(argv), 'op')
    torch.manual_seed(args.seed)
    with torch.no_grad():
        record('profile', profiles(args), args)


if __name__ == '__main__':
    main()
