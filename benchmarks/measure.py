"""What the benchmarks share: comparing, and writing what was measured."""
import argparse
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, List, Optional, Sequence,
                    Tuple)
from unittest.mock import patch

import torch

from fma_vision.engine.console import print_any_name
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.engine.timing import peak_memory, summarise, time_interleaved

Call = Callable[[], object]
# Takes the command line and returns rows.
Part = Callable[[argparse.Namespace], Iterable[dict]]
# Blocks above 64 KiB go back to the system at once, so that the process is
# as large as what is in use.
MALLOC = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0')
RESULTS = Path(__file__).parent / 'results'
# Seconds after which three samples of a slow call are enough.
PATIENCE = 5.
# What changes a measurement from outside, and is recorded.
VARIABLES = ('FMA_KERNELS_ISA', 'FMA_KERNELS_CFLAGS', 'OMP_NUM_THREADS',
             'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'THP_MEM_ALLOC_ENABLE',
             'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')

# What a row is about, and what was computed from its times.
WHAT = ('model', 'layer', 'context', 'mode', 'grid', 'shape', 'cell_size',
        'pixels', 'batch', 'weights')
COMPUTED = ('macs', 'peak_memory_bytes', 'ratio', 'growth', 'tensors',
            'process', 'over_median', 'excess', 'score', 'shares',
            'tokens_per_second', 'bits_per_character', 'options', 'worst',
            'rates', 'reasons', 'reason')


def after(setting: Call, run: Callable) -> Callable:
    """``run`` with a setting that is made anew at each call."""

    def both(*args: object) -> object:
        setting()
        return run(*args)

    return both


def peak_resident(call: Call) -> Optional[int]:
    """Bytes that the process grew by during a call, at the most.

    Whoever asked for them: scratch of libraries is in, unlike in
    :func:`~fma_vision.engine.timing.peak_memory`. What an earlier call freed
    counts only if the C library gave it back: see ``MALLOC``.

    Args:
        call: What to measure; run it once before, so that caches exist.

    Returns:
        Bytes; None where the system does not say (all but Linux).
    """

    def resident(name: str) -> int:
        text = Path('/proc/self/status').read_text()
        return 1024 * int(re.search(rf'{name}:\s+(\d+)', text)[1])

    try:
        # The high-water mark begins anew.
        Path('/proc/self/clear_refs').write_text('5')
        before = resident('VmRSS')
    except OSError:
        return None
    result = call()
    peak = resident('VmHWM') - before
    del result
    return peak


def attempt(run: Callable,
            *args: object,
            device: str = 'cuda') -> Tuple[Any, Optional[str]]:
    """Runs what may fail alone: its result, or one line of reason.

    Raises:
        RuntimeError: The device is lost (an illegal access, say): nothing
            that is measured in this process afterwards means anything.
    """
    on_gpu = torch.device(device).type == 'cuda'
    try:
        result = run(*args)
        if on_gpu:
            torch.cuda.synchronize(device)
        return result, None
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'.splitlines()[0][:240]
        if 'out of memory' in str(error):
            reason = 'out of memory'
    gc.collect()  # outside of the handler, which keeps the frames alive
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    return None, reason


def try_calls(calls: Dict[str, Call],
              device: str) -> Tuple[Dict[str, int], Dict[str, str]]:
    """Compiles and warms up calls, each of which may fail alone.

    Returns:
        The peak bytes of those that ran, and the reasons of the others.
    """
    peaks, reasons = {}, {}
    for name, run in calls.items():
        reason = attempt(run, device=device)[1]
        if reason is None:
            peaks[name], reason = attempt(
                peak_memory, run, device, device=device)
        if reason is not None:
            reasons[name] = reason
            peaks.pop(name, None)
    return peaks, reasons


def compare(entries: Sequence[Tuple[dict, Dict[str, Call]]],
            repeats: int,
            least: float,
            device: str = 'cpu',
            **shared: Call) -> List[dict]:
    """Times all calls in turns; each entry becomes a row.

    Args:
        entries: What identifies a row, and its calls by name.
        repeats: Samples of each call.
        least: Seconds of a sample.
        device: Where the calls run; they have run there before.
        **shared: Calls that all rows are compared with.

    Returns:
        The rows, with ``seconds`` by name and ``ratio``, the medians over
        that of the first name.
    """
    calls = {(None, name): run for name, run in shared.items()}
    for number, (_, own) in enumerate(entries):
        calls.update({(number, name): run for name, run in own.items()})
    samples = time_interleaved(
        calls,
        device,
        repeats=repeats,
        warmup=0,
        least_seconds=least,
        most_seconds=PATIENCE)
    rows = []
    for number, (row, own) in enumerate(entries):
        found = {name: samples[number, name] for name in own}
        found.update({name: samples[None, name] for name in shared})
        rows.append(summary(row, found))
    return rows


def summary(row: dict, samples: Dict[str, List[float]]) -> dict:
    """A row with medians and quartiles, and ratios over the first name."""
    seconds = {name: summarise(x) for name, x in samples.items()}
    first = next(iter(seconds.values()))['median']
    ratio = {name: x['median'] / first for name, x in seconds.items()}
    return dict(row, seconds=seconds, ratio=ratio)


def describe(**setting: object) -> dict:
    """A setting, with what else changes a measurement by now."""
    variables = {k: os.environ[k] for k in VARIABLES if k in os.environ}
    return dict(setting, load=os.getloadavg()[0], variables=variables)


def environment(device: str, seed: int) -> dict:
    """Machine, software and code; a copy without .git may be told COMMIT."""
    found = collect_environment(device, seed)
    if found['commit'] is None and os.environ.get('COMMIT'):
        found['commit'] = dict(hash=os.environ['COMMIT'], modified=None)
    return found


def parser(text: str,
           device: Optional[str] = 'cuda') -> argparse.ArgumentParser:
    """The options that the benchmarks share.

    Args:
        text: What ``--help`` says.
        device: Of the option; None for what runs on a CPU alone.
    """
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument(
        '--quick', action='store_true', help='tiny sizes, one sample each')
    if device is None:
        found.set_defaults(device='cpu')
    else:
        found.add_argument(
            '--device', default=device, help='cpu, cuda, cuda:1, ...')
        found.add_argument(
            '--backend', default='triton', help='of what a GPU is for')
    found.add_argument('--repeats', type=int, default=7)
    found.add_argument(
        '--least', type=float, help='seconds of a sample: .2, on a GPU .02')
    found.add_argument('--seed', type=int, default=0)
    found.add_argument(
        '--out', type=Path, help='default: under results/; none with --quick')
    return found


def settle(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """Fills in what depends on the device: ``name``_cpu.json, or _gpu."""
    print_any_name()
    on_cpu = torch.device(args.device).type == 'cpu'
    if args.quick:
        args.repeats, args.least = 1, 0
    elif args.out is None:
        args.out = RESULTS / f'{name}_{"cpu" if on_cpu else "gpu"}.json'
    if args.least is None:
        args.least = .2 if on_cpu else .02
    return args


def record(part: str, rows: Iterable[dict], args: argparse.Namespace,
           **setting: object) -> List[dict]:
    """Prints and writes rows; other parts of the file stay as they are.

    An iterator's rows are written as they come: it may be cut off.
    """
    found = dict(
        environment=environment(args.device, args.seed),
        setting=describe(
            repeats=args.repeats,
            least_seconds=args.least,
            quick=args.quick,
            **setting),
        rows=[])

    def write() -> None:
        path = args.out
        if path is not None:
            others = json.loads(path.read_text()) if path.exists() else {}
            write_json(path, {**others, part: found})

    for row in rows:
        found['rows'].append(row)
        print(part, brief(row), flush=True)
        if not isinstance(rows, list):
            write()
    write()
    return found['rows']


def brief(row: dict) -> str:
    """What a row is, medians in ms, and what was computed from them."""
    words = [f'{k} {row[k]}' for k in WHAT if k in row]
    for name, seconds in row.get('seconds', {}).items():
        words.append(f'{name} {seconds["median"] * 1e3:.4g} ms')
    words += [f'{k} {row[k]}' for k in COMPUTED if k in row]
    # Three digits are enough here.
    return re.sub(r'(\d\.\d\d)\d+', r'\1', ', '.join(words))


def run_parts(script: str,
              text: str,
              parts: Dict[str, Part],
              name: str,
              argv: Optional[List[str]],
              fresh: Sequence[str] = (),
              default: Optional[Dict[str, Sequence[str]]] = None) -> int:
    """The command line of a benchmark: measures parts and writes them.

    Args:
        script: Its file.
        text: What ``--help`` says.
        parts: What it measures, by name.
        name: Of the file of results, up to ``_cpu.json``.
        argv: Its arguments, those of the process by default.
        fresh: Parts that run in a process of their own, which gives memory
            back at once.
        default: Parts by the type of the device, where there is a choice;
            else all run on a CPU.

    Returns:
        1 if a row says that what was to be measured failed, else 0.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = parser(text, 'cpu' if default else None)
    options.add_argument('--parts', nargs='+', choices=parts)
    options.add_argument('--threads', type=int, default=2)
    args, status = settle(options.parse_args(argv), name), 0
    kind = torch.device(args.device).type
    for part in args.parts or (default or {}).get(kind, parts):
        if part in fresh and not MALLOC.items() <= os.environ.items():
            # The allocator reads its settings when a process starts.
            subprocess.run([sys.executable, script, *argv, '--parts', part],
                           env=dict(os.environ, **MALLOC),
                           check=True)
            continue
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        with torch.no_grad(), patch.dict(os.environ):
            rows = record(part, parts[part](args), args)
        torch.set_num_threads(args.threads)
        status |= any('reason' in row for row in rows)
    return int(status)
