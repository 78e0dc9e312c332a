"""Where the time goes: kernels of forward and backward, and launches.

``profile`` records the device time of every kernel through torch.profiler;
``graphs`` times calls replayed from a CUDA graph, which leaves out what
Python and launches cost. ``NCU=1`` also runs Nsight Compute if it is there.
"""
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from gpu_check import check
from gpu_common import Call, Case, Recorder, attempt, inputs, time_in_turns
from gpu_ops import attention, fma_options, inference, sdpa, training
from torch import Tensor
from torch.autograd import DeviceType

FULL = [
    Case((56, 56), (8, 4), 3, 32, 64),
    Case((256, 256), (8, 4), 3, 32, 1),
    Case((65536, ), (128, 64), 16, 64, 1, True),
]
TINY = [Case((24, 24), (4, ), 2, 32, 1)]


def kernels(call: Call, device: str, times: int = 5) -> List[Dict[str, Any]]:
    """Name, calls and microseconds of each kernel in one call."""
    on_gpu = torch.device(device).type == 'cuda'
    # The profiler's library logs to the console below this level.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(times):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = []
    for event in profile.key_averages():
        total = (
            event.self_device_time_total
            if on_gpu else event.self_cpu_time_total)
        if event.device_type == wanted and total:
            rows.append(
                dict(
                    kernel=event.key[:160],
                    calls=event.count / times,
                    microseconds=total / times))
    return sorted(rows, key=lambda row: -row['microseconds'])


def ncu_command(case: Case, cell: int, args: Namespace) -> List[str]:
    """Nsight Compute on one forward and backward pass."""
    script = os.path.relpath(__file__)
    size = 'x'.join(map(str, case.shape))
    numbers = (cell, case.heads, case.head_dim, case.batch)
    return [
        'ncu', '--clock-control', 'none', '--set', 'full', '--nvtx',
        '--nvtx-include', 'measured/', 'python', script, size,
        *map(str, numbers), args.backend, args.device
    ]


def _run_ncu(command: List[str], folder: Path, name: str, limit: float) -> str:
    """Writes the report beside the results; one line on how it went."""
    if not os.environ.get('NCU') == '1':
        return 'not run: NCU=1 was not set'
    if not shutil.which('ncu'):
        return 'not run: no ncu here'
    program = [sys.executable if x == 'python' else x for x in command]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=limit)
    path = folder / f'ncu-{name}.txt'
    path.write_text(done.stdout + done.stderr)
    return f'status {done.returncode}, see {path.name}'


def profile(recorder: Recorder, args: Namespace) -> bool:
    """Kernel times of the main shapes."""
    for case in TINY if args.tiny else FULL:
        for cell in case.cells:
            row = dict(case.describe(), cell_size=cell)
            if reason := recorder.late():
                recorder.add(dict(row, reason=reason))
                continue
            found, reason = attempt(
                lambda c=case, m=cell: _profiled(c, m, args), args.device)
            row.update(found or dict(reason=reason))
            command = ncu_command(case, cell, args)
            name = f'{"x".join(map(str, case.shape))}-{cell}'
            row['ncu'], failed = attempt(
                lambda: _run_ncu(command, recorder.path.parent, name, args.
                                 budget), args.device)
            row['ncu'] = failed or row['ncu']
            recorder.add(row)
            print(f'{case}, cell {cell}:', row.get('reason', ''))
            for kernel in row.get('forward', []) + row.get('training', []):
                print(f'  {kernel["microseconds"]:9.1f} us '
                      f'{kernel["calls"]:5.1f} x {kernel["kernel"][:80]}')
            print('  to look inside:', ' '.join(command))
    return all('reason' not in row for row in recorder.rows())


def _profiled(case: Case, cell: int, args: Namespace) -> Dict[str, Any]:
    tensors = inputs(case, args, 4)
    grad = tensors.pop()
    options = fma_options(case, cell, args.backend)
    check(tensors, grad, options, args)

    def op(*x: Tensor) -> Tensor:
        return attention(*x, **options)

    return dict(
        forward=kernels(inference(op, tensors), args.device)[:20],
        training=kernels(training(op, tensors, grad), args.device)[:30])


def graphed(call: Call, device: str) -> Callable[[], None]:
    """The call as a CUDA graph: replaying it costs one launch.

    Raises:
        RuntimeError: if the call waits for the device or this is no GPU.
    """
    if torch.device(device).type != 'cuda':
        raise RuntimeError('CUDA graphs need a GPU')
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay(kept: Any = result) -> None:
        graph.replay()  # writes to what the result keeps alive

    return replay


def graphs(recorder: Recorder, args: Namespace) -> bool:
    """Times without launch costs, where the device waits for the host."""
    for case in TINY if args.tiny else FULL:
        if reason := recorder.late():
            recorder.add(dict(case.describe(), reason=reason))
            continue
        found, reason = attempt(lambda c=case: _replayed(c, args), args.device)
        recorder.add(dict(case.describe(), **(found or dict(reason=reason))))
        print(f'{case}: {found or reason}', flush=True)
    return True  # not every op can be captured


def _replayed(case: Case, args: Namespace) -> Dict[str, Any]:
    tensors = inputs(case, args, 4)
    grad = tensors.pop()
    ops: Dict[str, Callable] = {'sdpa': sdpa(case)}
    for cell in case.cells:
        options = fma_options(case, cell, args.backend)
        check(tensors, grad, options, args)
        ops[f'fma-{cell}'] = (lambda *x, o=options: attention(*x, **o))
    times: Dict[str, dict] = {}
    for mode in ('forward', 'training'):
        calls, times[mode] = {}, {}
        for name, op in ops.items():
            call = (
                inference(op, tensors) if mode == 'forward' else training(
                    op, tensors, grad))
            replay, reason = attempt(
                lambda c=call: graphed(c, args.device), args.device)
            if reason:
                times[mode][name] = reason
            else:
                calls[name] = replay
        if calls:
            times[mode].update(time_in_turns(calls, args))
    return dict(times=times)


def _once(size: str, *numbers: str) -> None:
    """What Nsight Compute watches: forward and backward, marked."""
    cell, heads, head_dim, batch = map(int, numbers[:4])
    backend, device = numbers[4:]
    shape = tuple(map(int, size.split('x')))
    case = Case(shape, (cell, ), heads, head_dim, batch, len(shape) == 1)
    args = Namespace(device=device, dtype='bfloat16')
    tensors = inputs(case, args, 4)
    grad = tensors.pop()
    options = fma_options(case, cell, backend)
    call = training(lambda *x: attention(*x, **options), tensors, grad)
    call()  # compiles and tunes, unwatched
    if torch.device(device).type == 'cuda':
        with torch.cuda.nvtx.range('measured'):
            call()
            torch.cuda.synchronize(device)


if __name__ == '__main__':
    _once(*sys.argv[1:])
