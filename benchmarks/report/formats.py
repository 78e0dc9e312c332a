"""How results are read, and numbers, machines and tables written."""
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Dict, List, Optional

# What tests and results call a metric, and what tables do.
METRICS = {
    'accuracy/top1': 'top-1, %',
    'top1': 'top-1, %',
    'mIoU': 'mIoU, %',
    'bpc': 'bits per character',
}


def load(results: Path, name: str) -> Optional[Dict[str, Any]]:
    """A file of results, or None where it was not measured.

    Raises:
        SystemExit: It is damaged.
    """
    path = results / f'{name}.json'
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise SystemExit(f'{path} cannot be read: {error}')


def table(head: List[str], rows: List[List[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ['---'] + ['--:'] * (len(head) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def where(environment: dict) -> str:
    """One line about the machine and the software."""
    commit = (environment.get('commit') or {}).get('hash', 'unknown')[:10]
    return (f'{environment["cpu"]}, {environment["threads"]} threads, '
            f'torch {environment["packages"]["torch"]}, commit {commit}, '
            f'seed {environment["seed"]}')


def where_gpu(environment: dict) -> str:
    """One line about the GPU and the software."""
    commit = (environment['commit'] or {}).get('hash', 'unknown')[:10]
    packages = environment['packages']
    return (f'{environment.get("device_name", environment["cpu"])}, torch '
            f'{packages["torch"]}, triton {packages.get("triton", "none")}, '
            f'commit {commit}, seed {environment["seed"]}; '
            '`kernels/benchmarks/gpu.sh`')


def number(value: Optional[float], unit: str = '') -> str:
    """Three digits, or a dash for what was not measured."""
    if value is None:
        return '–'
    return (f'{value:.0f}' if value >= 100 else f'{value:.3g}') + unit


def short(count: Optional[float]) -> str:
    """Three digits and a unit."""
    for size, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if count and count >= size:
            return f'{count / size:.3g}{unit}'
    return number(count)


def spread(values: List[float], digits: int = 2, sign: str = '') -> str:
    """The mean, and the standard deviation where there are several."""
    text = f'{mean(values):{sign}.{digits}f}'
    if len(values) == 1:
        return text
    return f'{text} ± {stdev(values):.{digits}f}'
