"""How numbers, machines and tables are written."""
from math import sqrt
from statistics import mean, stdev
from typing import List, Optional


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
            '`benchmarks/gpu.sh`')


def where_run(environment: dict) -> str:
    """:func:`where`, with the GPU where one was used."""
    place = where(environment)
    name = environment.get('device_name')
    return f'{name}, {place}' if name else place


def milliseconds(summary: dict) -> str:
    return f'{summary["median"] * 1e3:.0f}'


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


def standard_error(values: List[float]) -> Optional[float]:
    """That of the mean; None for a single value."""
    if len(values) == 1:
        return None
    return stdev(values) / sqrt(len(values))


def spread(values: List[float], digits: int = 2, sign: str = '') -> str:
    """The mean, and the standard deviation where there are several."""
    text = f'{mean(values):{sign}.{digits}f}'
    if len(values) == 1:
        return text
    return f'{text} ± {stdev(values):.{digits}f}'
