"""How results are read, and numbers, machines and tables written."""
import json
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Callable, Dict, List, Optional, Sequence

# What tests and results call a metric, and what tables do.
METRICS = {
    'accuracy/top1': 'top-1, %',
    'top1': 'top-1, %',
    'mIoU': 'mIoU, %',
    'bpc': 'bits per character',
}
Cell = Callable[[dict], str]


def load(results: Path, name: str) -> Dict[str, Any]:
    """A file of results; nothing where it was not measured."""
    path = results / f'{name}.json'
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise SystemExit(f'{path} cannot be read: {error}')


def rows_of(found: dict, *parts: str) -> List[dict]:
    """Rows of the parts that were measured, without failures."""
    return [
        row for part in parts if part in found for row in found[part]['rows']
        if 'reason' not in row
    ]


# ----------------------------------------------------------------- numbers
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


def mebibytes(value: Optional[float]) -> str:
    return '–' if value is None else f'{value / 2**20:,.0f}'


def fixed(key: str, digits: int = 2, unit: float = 1) -> Cell:
    """A number of a row, or a dash for what was not measured."""
    return lambda row: ('–' if row[key] is None else
                        f'{row[key] / unit:,.{digits}f}')


def spread(values: List[float], digits: int = 2) -> str:
    """The mean, and the standard deviation where there are several."""
    text = f'{mean(values):.{digits}f}'
    if len(values) == 1:
        return text
    return f'{text} ± {stdev(values):.{digits}f}'


# ------------------------------------------------------------------- cells
def seconds(row: dict, name: str) -> Optional[float]:
    """The median, or None for what did not run."""
    return row['seconds'].get(name, {}).get('median')


def ms(name: str) -> Cell:
    """Milliseconds of what has a name."""

    def cell(row: dict) -> str:
        found = seconds(row, name)
        return number(found and found * 1e3)

    return cell


def label(row: dict) -> str:
    """What a row is about: pixels or tokens, and how."""
    size = row.get('pixels') or row.get('grid') or row['shape']
    text = ' × '.join(f'{x}' if 'pixels' in row else f'{x:,}' for x in size)
    words = [
        f'`{row["layer"]}`' if 'layer' in row else '', text,
        'causal' if row.get('causal') else '',
        f'batch {row["batch"]}' if row.get('batch', 1) > 1 else '',
        f'cell {row["cell_size"]}' if 'cell_size' in row else '', row['mode']
    ]
    return ', '.join(filter(None, words))


# ------------------------------------------------------------------ tables
def table(head: Sequence[str], rows: List[List[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ['---'] + ['--:'] * (len(head) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def section(title: str,
            rows: List[dict],
            columns: Dict[str, Cell],
            first: str = 'tokens',
            name: Cell = label) -> Optional[str]:
    """A titled table, or None where nothing was measured.

    ``columns`` say something of each row, by their heads; the first column's
    head is ``first``, and ``name`` says it.
    """
    if not rows:
        return None
    lines = [[name(r), *(cell(r) for cell in columns.values())] for r in rows]
    return f'{title}\n\n{table([first, *columns], lines)}'


def ratios(title: str,
           rows: List[dict],
           first: str = 'tokens') -> Optional[str]:
    """Times by name, and those after the first over the first."""
    names = list(rows[0]['seconds']) if rows else []
    columns = {f'{x}, ms': ms(x) for x in names}
    for x in names[1:]:
        columns[f'{x} / {names[0]}'] = (lambda r, x=x: f'{r["ratio"][x]:.2f}')
    return section(title, rows, columns, first)


def where(environment: dict) -> str:
    """One line about the machine and the software."""
    commit = (environment.get('commit') or {}).get('hash', 'unknown')[:10]
    packages = environment['packages']
    place = f'{environment["cpu"]}, {environment["threads"]} threads'
    versions = f'torch {packages["torch"]}'
    if 'device_name' in environment:
        place = environment['device_name']
        versions += f', triton {packages.get("triton", "none")}'
    return f'{place}, {versions}, commit {commit}, seed {environment["seed"]}'


def page(found: dict, sections: Sequence[Optional[str]], parts: Sequence[str],
         how: str) -> Optional[str]:
    """Sections, and the places where their parts were measured."""
    sections = [x for x in sections if x]
    if not sections:
        return None
    used = [found[part] for part in parts if part in found]
    widths = [(x['quartile_3'] - x['quartile_1']) / x['median']
              for part in used for row in part['rows']
              for x in row.get('seconds', {}).values()]
    places = '; '.join({where(part['environment']): None for part in used})
    between = (f', the middle half of the samples {median(widths):.0%} wide '
               f'as a rule, {max(widths):.0%} at most' if widths else '')
    return '\n\n'.join([*sections, f'{places}; {how}, medians{between}'])
