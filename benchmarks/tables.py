"""Writes the measured tables into the pages, from benchmarks/results/*.json.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # fail if a page is out of date

A page marks a place with ``<!-- results: NAME -->``; NAME is one of TABLES.
No number is typed by hand: what was not measured leaves its place empty.
"""
import argparse
import json
import re
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results'
PAGES = ('README.md', 'demo/weights/README.md', 'kernels/README.md')


def load(name: str) -> Optional[dict]:
    """A result file, or None where it was not measured."""
    path = RESULTS / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else None


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


def milliseconds(summary: dict) -> str:
    return f'{summary["median"] * 1e3:.0f}'


def speed() -> Optional[str]:
    """The op against SDPA over all tokens."""
    found = load('op_cpu')
    if not found or 'speed' not in found:
        return None
    rows = [[
        f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
        milliseconds(r['fma_seconds']),
        milliseconds(r['sdpa_seconds']), f'**{r["speedup"]:.1f} ×**',
        f'{r["speedup_by_flops"]:.0f} ×'
    ] for r in found['speed']['rows']]
    return (
        'The operation against PyTorch\'s attention over all tokens '
        '(float32, 3 heads × 32, batch 1, inference):\n\n' +
        table(['tokens', 'FMA, ms', 'SDPA, ms', 'faster', 'by FLOPs'], rows) +
        f'\n\n{where(found["speed"]["environment"])}; '
        '`python kernels/benchmarks/cpu.py`')


def op_details() -> Optional[str]:
    """Scaling, memory and the near field against flex_attention."""
    found = load('op_cpu')
    if not found:
        return None
    parts = []
    if 'scaling' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["visited_pairs"] / 1e6:.1f}',
            milliseconds(r['fma_seconds']), f'{r["growth_over_pairs"]:.2f}'
        ] for r in found['scaling']['rows']]
        parts.append(
            'Time against the pairs that the definition visits; the last '
            'column is the growth of the one over that of the other, from '
            '64 × 64:\n\n' +
            table(['tokens', 'pairs a head, M', 'ms', 'growth'], rows))
    if 'memory' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["forward"]:.2f}', f'{r["training"]:.2f}'
        ] for r in found['memory']['rows']]
        parts.append(
            'Peak memory beyond the inputs, over the bytes of q + k + v:\n\n' +
            table(['tokens', 'inference', 'forward and backward'], rows))
    if 'near_field' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["nanoseconds_per_key"]["fma"]:.2f}',
            f'{r["nanoseconds_per_key"]["flex"]:.2f}',
            f'{r["fma_over_flex"]:.2f}'
        ] for r in found['near_field']['rows']]
        parts.append(
            'Nanoseconds per key visited and head: FMA with everything it '
            'does, compiled `flex_attention` on the near field alone, with '
            'tokens already in cell order:\n\n' +
            table(['tokens', 'FMA', 'flex', 'ratio'], rows))
    if not parts:
        return None
    first = next(iter(found.values()))
    return '\n\n'.join(parts) + f'\n\n{where(first["environment"])}'


def backbones() -> Optional[str]:
    """FMA-T against Swin-T."""
    found = load('backbone_latency_cpu')
    if not found:
        return None
    rows = []
    for r in found['results']:
        side = ' × '.join(map(str, r['shape']))
        rows.append([
            f'`{Path(r["config"]).stem}`, {side}',
            f'{r["parameters"] / 1e6:.1f}',
            milliseconds(r['latency_seconds']), f'{r["ratio_of_medians"]:.2f}',
            f'{r["peak_memory_bytes"] / 2**20:.0f}'
        ])
    return ('Backbones alone, one image, float32; the ratio is to '
            'mmpretrain\'s Swin-T:\n\n' +
            table(['config, pixels', 'params, M', 'ms', 'ratio', 'peak MiB'],
                  rows) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/benchmark.py`')


def shipped() -> Optional[str]:
    """Scores of the shipped weights."""
    found = load('street8')
    if not found:
        return None
    rows = []
    for name, key in (('LabelMeFacade, 189 held-out photographs',
                       'labelmefacade'), ('CamVid, 101 validation frames',
                                          'camvid')):
        metrics = found['metrics']
        rows.append([name] + [
            f'{metrics[f"{key}/{metric}"]:.1f}'
            for metric in ('mIoU', 'aAcc', 'mAcc')
        ])
    return (
        'The shipped weights, trained from scratch on a CPU for about '
        'an hour:\n\n' +
        table(['validation set', 'mIoU', 'pixel accuracy', 'mean accuracy'],
              rows) + f'\n\n`python tools/test.py {found["config"]} '
        f'{found["checkpoint"]}`')


def classification() -> Optional[str]:
    """Scores on small classification sets."""
    found = load('fashion_mnist')
    if not found:
        return None
    top1 = found['metrics']['accuracy/top1']
    return (
        'Classification, trained from scratch on a CPU:\n\n' +
        table(['config', 'test images', 'top-1, %'],
              [[f'`{Path(found["config"]).stem}`', '10,000', f'{top1:.2f}']]))


TABLES: Dict[str, Callable[[], Optional[str]]] = {
    'operation, CPU': speed,
    'operation, details': op_details,
    'backbones': backbones,
    'shipped weights': shipped,
    'small classification': classification,
}


def fill(text: str, name: str) -> str:
    """Replaces what stands between the marks of one page."""

    def replace(match: 're.Match') -> str:
        if match[1] not in TABLES:
            raise SystemExit(f'{name}: no table is called {match[1]!r}; '
                             f'allowed: {sorted(TABLES)}')
        body = TABLES[match[1]]()
        middle = f'\n{body}\n' if body else '\n'
        return (f'<!-- results: {match[1]} -->{middle}'
                f'<!-- /results: {match[1]} -->')

    return re.sub(
        r'<!-- results: (.+?) -->\n.*?<!-- /results: \1 -->',
        replace,
        text,
        flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        filled = fill(text, name)
        if filled == text:
            continue
        if args.check:
            sys.exit(f'{name} is out of date: run python '
                     'benchmarks/tables.py')
        path.write_text(filled)
        print(f'{name} updated')


if __name__ == '__main__':
    main()
