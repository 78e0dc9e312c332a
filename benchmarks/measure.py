"""What the benchmarks share: comparing, and writing what was measured."""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple
from unittest.mock import patch

import torch

from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import summarise, time_interleaved

Call = Callable[[], object]
# Takes the command line and returns rows.
Part = Callable[[argparse.Namespace], List[dict]]
# Blocks above 64 KiB go back to the system at once, so that the process is
# as large as what is in use.
MALLOC = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0')
# Seconds after which three samples of a slow call are enough.
PATIENCE = 5.
# What changes a measurement from outside, and is recorded.
VARIABLES = ('FMA_KERNELS_ISA', 'FMA_KERNELS_CFLAGS', 'OMP_NUM_THREADS',
             'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'THP_MEM_ALLOC_ENABLE',
             'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')

# What a row is about, and what was computed from its times.
WHAT = ('model', 'context', 'mode', 'grid', 'cell_size', 'pixels', 'batch',
        'weights')
COMPUTED = ('ratio', 'growth', 'tensors', 'process', 'over_median', 'excess',
            'score', 'shares', 'tokens_per_second', 'bits_per_character',
            'reason')


def after(setting: Call, run: Callable) -> Callable:
    """``run`` with a setting that is made anew at each call."""

    def both(*args: object) -> object:
        setting()
        return run(*args)

    return both


def compare(entries: Sequence[Tuple[dict, Dict[str, Call]]], repeats: int,
            least: float, **shared: Call) -> List[dict]:
    """Times all calls in turns; each entry becomes a row.

    Args:
        entries: What identifies a row, and its calls by name.
        repeats: Samples of each call.
        least: Seconds of a sample.
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


def write_part(path: Path, part: str, seed: int, setting: dict,
               rows: List[dict]) -> None:
    """Adds a part to a file: others stay, each with its environment."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[part] = dict(
        environment=collect_environment('cpu', seed),
        setting=setting,
        rows=rows)
    write_json(path, results)


def brief(row: dict) -> str:
    """What a row is, medians in ms, and what was computed from them."""
    words = [f'{k} {row[k]}' for k in WHAT if k in row]
    for name, seconds in row.get('seconds', {}).items():
        words.append(f'{name} {seconds["median"] * 1e3:.4g} ms')
    words += [f'{k} {row[k]}' for k in COMPUTED if k in row]
    # Three digits are enough here.
    return re.sub(r'(\d\.\d\d)\d+', r'\1', ', '.join(words))


def run_parts(script: str, text: str, parts: Dict[str, Part], result: Path,
              argv: Optional[List[str]], fresh: Sequence[str]) -> None:
    """The command line of a benchmark: measures parts and writes them.

    Args:
        script: Its file.
        text: What ``--help`` says.
        parts: What it measures, by name.
        result: Where to, unless it is a rehearsal.
        argv: Its arguments, those of the process by default.
        fresh: Parts that run in a process of their own, which gives memory
            back at once.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=parts, default=list(parts))
    parser.add_argument(
        '--quick', action='store_true', help='tiny sizes, one sample each')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument(
        '--least', type=float, default=.2, help='seconds of a sample')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--out', type=Path, help=f'default: {result}; none with --quick')
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats, args.least = 1, 0
    elif args.out is None:
        args.out = result
    for part in args.parts:
        if part in fresh and not MALLOC.items() <= os.environ.items():
            # The allocator reads its settings when a process starts.
            subprocess.run([sys.executable, script, *argv, '--parts', part],
                           env=dict(os.environ, **MALLOC),
                           check=True)
            continue
        torch.manual_seed(args.seed)
        setting = describe(
            repeats=args.repeats, least_seconds=args.least, quick=args.quick)
        torch.set_num_threads(args.threads)
        with torch.no_grad(), patch.dict(os.environ):
            rows = parts[part](args)
        torch.set_num_threads(args.threads)
        for row in rows:
            print(part, brief(row), flush=True)
        if args.out is not None:
            write_part(args.out, part, args.seed, setting, rows)
