"""What the benchmarks share: comparing, and writing what was measured."""
import json
import os
import re
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import summarise, time_interleaved

Call = Callable[[], object]
# Seconds after which three samples of a slow call are enough.
PATIENCE = 5.
# What changes a measurement from outside, and is recorded.
VARIABLES = ('FMA_KERNELS_ISA', 'FMA_KERNELS_CFLAGS', 'OMP_NUM_THREADS',
             'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'THP_MEM_ALLOC_ENABLE',
             'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')


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
        seconds = {name: summarise(samples[number, name]) for name in own}
        seconds.update(
            {name: summarise(samples[None, name])
             for name in shared})
        first = next(iter(seconds.values()))['median']
        ratio = {name: x['median'] / first for name, x in seconds.items()}
        rows.append(dict(row, seconds=seconds, ratio=ratio))
    return rows


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
    words = [f'{row["grid"]} cell {row["cell_size"]} {row["mode"]}:']
    for name, seconds in row.get('seconds', {}).items():
        words.append(f'{name} {seconds["median"] * 1e3:.4g} ms')
    for name in ('ratio', 'growth', 'tensors', 'process', 'over_median',
                 'excess'):
        if name in row:
            words.append(f'{name} {row[name]}')
    # Three digits are enough here.
    return re.sub(r'(\d\.\d\d)\d+', r'\1', ', '.join(words))
