"""What the benchmarks share: comparing, and writing what was measured."""
import argparse
import gc
import inspect
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, List, Optional, Sequence,
                    Tuple)

import torch

from fma_vision.engine.console import print_any_name
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.engine.timing import (Call, peak_memory, summarise,
                                      time_interleaved)

# Takes the command line and returns rows, as they come if it is a generator.
Part = Callable[[argparse.Namespace], Iterable[dict]]
# Blocks above 64 KiB go back to the system at once, so that the process is
# as large as what is in use.
MALLOC = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0')
RESULTS = Path(__file__).parent / 'results'
# Seconds after which three samples of a slow call are enough.
PATIENCE = 5.
# Not printed.
QUIET = 'errors', 'config', 'flops', 'pairs', 'all_pairs', 'least_bytes'
# Else the profiler's library logs to the console.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
# What changes a measurement from outside, and is recorded.
VARIABLES = ('FMA_KERNELS_ISA', 'FMA_KERNELS_CFLAGS', 'OMP_NUM_THREADS',
             'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'THP_MEM_ALLOC_ENABLE',
             *MALLOC)


def peak_resident(call: Call) -> Optional[int]:
    """Bytes that the process grew by during a call, at the most.

    Whoever asked for them: scratch of libraries is in, unlike in
    :func:`~fma_vision.engine.timing.peak_memory`. What an earlier call freed
    counts only if the C library gave it back: see ``MALLOC``. None where the
    system does not say (all but Linux).
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


def attempt(run: Call, device: str) -> Tuple[Any, Optional[str]]:
    """Runs what may fail alone: its result, or one line of reason.

    Raises:
        RuntimeError: The device is lost (an illegal access, say): nothing
            that is measured in this process afterwards means anything.
    """
    on_gpu = torch.device(device).type == 'cuda'
    try:
        result = run()
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


def each(calls: Dict[Any, Call], device: str) -> Tuple[dict, dict]:
    """The results of those that run, and the reasons of the others."""
    results, reasons = {}, {}
    for name, run in calls.items():
        result, reason = attempt(run, device)
        (reasons if reason else results)[name] = reason or result
    return results, reasons


def compare(entries: Sequence[Tuple[dict, Dict[str, Call]]],
            args: argparse.Namespace, **shared: Call) -> List[dict]:
    """Times all calls that run in turns; each entry becomes a row.

    Rows hold times, peak bytes, and the reasons of what did not run: also
    ``reason``, if that is the first call.

    Args:
        entries: What identifies a row, and its calls by name.
        args: The command line.
        **shared: Calls that all rows are compared with.
    """
    calls = {(None, name): run for name, run in shared.items()}
    for i, (_, own) in enumerate(entries):
        calls.update({(i, name): run for name, run in own.items()})

    def peak(run: Call) -> int:
        run()  # compiles and fills caches
        return peak_memory(run, args.device)

    warm = {key: partial(peak, run) for key, run in calls.items()}
    peaks, reasons = each(warm, args.device)
    limits = dict(least_seconds=args.least, most_seconds=PATIENCE)
    samples = time_interleaved({key: calls[key]
                                for key in peaks}, args.device, args.repeats,
                               0, **limits) if peaks else {}
    rows = []
    for number, (row, own) in enumerate(entries):
        keys = [(number, x) for x in own] + [(None, x) for x in shared]
        why = {k[1]: reasons[k] for k in keys if k in reasons}
        row = dict(row, reasons=row.get('reasons', {}) | why)
        first = next(iter(own), None)
        if first in why:
            row['reason'] = why[first]
        ran = [k for k in keys if k in peaks]
        row['peak_bytes'] = {k[1]: peaks[k] for k in ran}
        rows.append(summary(row, {k[1]: samples[k] for k in ran}))
    return rows


def summary(row: dict, samples: Dict[str, List[float]]) -> dict:
    """A row with medians and quartiles, and ratios over the first name."""
    seconds = {name: summarise(x) for name, x in samples.items()}
    if not seconds:
        return row
    first = next(iter(seconds.values()))['median']
    ratio = {name: x['median'] / first for name, x in seconds.items()}
    return dict(row, seconds=seconds, ratio=ratio)


def parser(text: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument(
        '--quick', action='store_true', help='tiny sizes, one sample each')
    found.add_argument('--repeats', type=int, default=7)
    found.add_argument(
        '--least', type=float, help='seconds of a sample: .2, on a GPU .02')
    found.add_argument('--seed', type=int, default=0)
    found.add_argument('--threads', type=int, default=2)
    found.add_argument(
        '--out', type=Path, help='default: under results/; none with --quick')
    return found


def record(part: str, rows: Iterable[dict], args: argparse.Namespace) -> bool:
    """Prints and writes rows; says whether one has a reason for failure.

    They are written as they come; other parts of the file stay.
    """
    environment = collect_environment(args.device, args.seed)
    if environment['commit'] is None and os.environ.get('COMMIT'):
        # A copy without .git may be told.
        environment['commit'] = dict(hash=os.environ['COMMIT'], modified=None)
    found = dict(
        environment=environment,
        setting=dict(
            repeats=args.repeats,
            least_seconds=args.least,
            quick=args.quick,
            load=os.getloadavg()[0],
            variables={k: os.environ[k]
                       for k in VARIABLES if k in os.environ}),
        rows=[])
    for row in rows:
        found['rows'].append(row)
        print(part, brief(row), flush=True)
        if args.out is not None:
            others = (
                json.loads(args.out.read_text()) if args.out.exists() else {})
            write_json(args.out, {**others, part: found})
    return any('reason' in row for row in found['rows'])


def brief(row: dict) -> str:
    """A row in a line, medians in ms, without what is the same or zero."""
    times = {
        name: f'{seconds["median"] * 1e3:.4g} ms'
        for name, seconds in row.get('seconds', {}).items()
    }
    text = ', '.join(f'{k} {x}'
                     for k, x in (row | dict(seconds=times)).items()
                     if x and k not in QUIET)
    # Three digits are enough here.
    return re.sub(r'(\d\.\d\d)\d+', r'\1', text)


def run_parts(options: argparse.ArgumentParser,
              name: str,
              parts: Dict[str, Sequence[Part]],
              argv: Optional[List[str]],
              fresh: Sequence[Part] = ()) -> int:
    """The command line of a benchmark: measures parts and writes them.

    Args:
        options: Of :func:`parser`, and more.
        name: Of the file of results, up to ``_cpu.json`` or ``_gpu.json``.
        parts: What it measures by default, by the type of the device.
        argv: Its arguments, those of the process by default.
        fresh: Parts for a process of their own, which gives memory back.
    """
    print_any_name()
    argv = sys.argv[1:] if argv is None else argv
    known = {x.__name__: x for kind in parts.values() for x in kind}
    options.add_argument('--parts', nargs='+', choices=known)
    options.set_defaults(device='cpu')
    if 'cuda' in parts:
        options.add_argument('--device', help='cpu, cuda, cuda:1, ...')
        options.add_argument(
            '--backend', default='triton', help='of what a GPU is for')
    args, failed = options.parse_args(argv), False
    kind = torch.device(args.device).type
    if args.quick:
        args.repeats, args.least = 1, 0
    elif args.out is None:
        suffix = dict(cuda='gpu').get(kind, kind)
        args.out = RESULTS / f'{name}_{suffix}.json'
    if args.least is None:
        args.least = .2 if kind == 'cpu' else .02
    chosen = [known[x] for x in args.parts or ()] or parts[kind]
    for part in chosen:
        if part in fresh and not MALLOC.items() <= os.environ.items():
            # The allocator reads its settings when a process starts.
            again = [sys.executable, inspect.getfile(part), *argv]
            failed |= subprocess.run([*again, '--parts', part.__name__],
                                     env=dict(os.environ, **MALLOC)).returncode
            continue
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        with torch.no_grad():
            failed |= record(part.__name__, part(args), args)
    return int(bool(failed))
