"""Tables of the experiments, from ``experiments.jsonl``.

`benchmarks/experiments/run.py collect` writes it, a line a run.
"""
import json
from math import isfinite
from pathlib import Path
from typing import Any, Dict, List, Optional

from .formats import METRICS, load, spread, table

DATASETS = {
    'tiny_imagenet100': 'Tiny ImageNet, first 100 classes',
    'cifar10': 'CIFAR-10',
    'camvid': 'CamVid',
    'dubai_aerial': 'Dubai aerial imagery',
    'books': 'Books',
    'listops': 'ListOps',
    'ablations': 'FMA on CIFAR-10 with one thing changed',
}
ATTENTIONS = {
    'fma': 'FMA',
    'fma_linear': 'FMA, pooled queries',
    'window': 'shifted windows',
    'full': 'all tokens',
    'mano': 'MANO',
    'fmmformer': 'FMMformer',
}
PROTOCOLS = {
    'full':
    'Full protocol',
    'reduced':
    '**Reduced protocol**: minutes a run on one CPU core, far from '
    'converged, so that these numbers rank nothing but early learning',
}


def read_runs(results: Path) -> List[Dict[str, Any]]:
    """The lines of all runs; none without the file.

    Raises:
        SystemExit: A line is damaged, holds what is not known, or is there
            twice.
    """
    path, found, seen = results / 'experiments.jsonl', [], set()
    lines = path.read_bytes().splitlines() if path.is_file() else []
    allowed = dict(protocol=PROTOCOLS, attention=ATTENTIONS)
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            for key, known in allowed.items():
                if line[key] not in known:
                    raise ValueError(f'{key} must be one of {list(known)}, '
                                     f'got {line[key]!r}')
            if not isfinite(line['value']):
                raise ValueError(f'the score is {line["value"]}')
            identity = line['protocol'], line['name'], line['seed']
            if identity in seen:
                raise ValueError('the same run is there twice')
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(f'{path}, line {number}: {error!r}')
        seen.add(identity)
        found.append(line)
    return found


def label(line: Dict[str, Any]) -> str:
    """What a row is of: the attention, and in what it differs."""
    text = ATTENTIONS[line['attention']]
    # `camvid/fma-pretrained` and `books/fma-4k` say more than `camvid/fma`.
    rest = line['name'].partition('/')[2].removeprefix(line['attention'])
    return text + (f' ({rest.removeprefix("-")})' if rest else '')


def groups(results: Path, protocol: str,
           group: str) -> List[List[Dict[str, Any]]]:
    """The seeds of each run whose name begins with a group's."""
    found: Dict[str, List[Dict[str, Any]]] = {}
    for line in read_runs(results):
        if line['protocol'] == protocol and line['name'].startswith(
                f'{group}/'):
            found.setdefault(line['name'], []).append(line)
    order = list(ATTENTIONS)
    return sorted(
        (sorted(seeds, key=lambda x: x['seed']) for seeds in found.values()),
        key=lambda x: (order.index(x[0]['attention']), x[0]['name']))


def places(lines: List[Dict[str, Any]], group: str) -> str:
    """The machines, the software and the command."""
    commits: Dict[str, Dict[str, None]] = {}
    for line in lines:
        machine = f'{line["device"]}, torch {line["versions"]["torch"]}'
        commit = (line['commit'] or 'unknown')[:10]
        commit += ' (modified)' if line['modified'] else ''
        commits.setdefault(machine, {})[commit] = None
    starts = {
        line['start'].partition('/')[0]
        for line in lines if line['start']
    }
    only = ' '.join(f"'{name}/*'"
                    for name in [*sorted(starts - {group}), group])
    return '; '.join([
        *(f'{machine}, commit {", ".join(found)}'
          for machine, found in commits.items()),
        '`python benchmarks/experiments/run.py '
        f'--protocol {lines[0]["protocol"]} --only {only}`'
    ])


def rounded(value: Optional[float]) -> str:
    """Whole, or with two digits; a dash for what was not measured."""
    if value is None:
        return '–'
    return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def comparison(results: Path, group: str) -> Optional[str]:
    """The runs of a group, a table for each protocol."""
    parts = []
    for protocol, title in PROTOCOLS.items():
        named = groups(results, protocol, group)
        rows, lines = [], [line for seeds in named for line in seeds]
        for seeds in named:
            first = seeds[0]
            length = (f'{first["epochs"]} epochs' if first['epochs'] else
                      f'{first["iterations"]:,} × {first["batch_size"]}')
            digits = 3 if first['metric'] == 'bpc' else 2
            loss = first['training_loss']
            rows.append([
                label(first), f'{first["parameters"] / 1e6:.2f}',
                f'{first["macs"] / 1e9:.3f}', length,
                spread([line['value'] for line in seeds], digits),
                str(len(seeds)), f'{first["value"]:.{digits}f}',
                f'{loss:.3f}' if loss is not None else '–',
                rounded(first['samples_per_second']),
                rounded(first['training_memory'])
            ])
        if rows:
            metric = METRICS[lines[0]['metric']]
            head = [
                'attention', 'params, M', 'GMACs', 'training', metric, 'seeds',
                f'seed {lines[0]["seed"]}', 'its loss', 'samples/s', 'MiB'
            ]
            # Only CUDA's allocator is asked.
            if not any(line['training_memory'] for line in lines):
                head, rows = head[:-1], [row[:-1] for row in rows]
            parts.append(
                f'{DATASETS[group]}. {title}; speed and memory of training '
                'are of the first seed, ± is the sample standard deviation '
                'over the seeds, "its loss" the mean over the last quarter of '
                f'the training:\n\n{table(head, rows)}\n\n'
                f'{places(lines, group)}')
    return '\n\n'.join(parts) or None


def resolutions(results: Path) -> Optional[str]:
    """Whole images at multiples of the size that a config tests at."""
    parts = []
    for protocol, title in PROTOCOLS.items():
        lines = [
            line for line in read_runs(results)
            if line['protocol'] == protocol and line['sizes']
        ]
        sizes = list(lines[0]['sizes']) if lines else []
        rows = [[
            f'{DATASETS[line["dataset"]]}, {label(line)}',
            *(f'{line["sizes"][x]:.2f} '
              f'({line["sizes"][x] / line["value"]:.0%})' for x in sizes)
        ] for line in lines]
        if rows:
            parts.append(
                f'mIoU in percent, and as a share of that at the size of the '
                f'config. {title}:\n\n' +
                table(['set, attention', *(f'{x} ×' for x in sizes)], rows))
    return '\n\n'.join(parts) or None


def shares(results: Path) -> Optional[str]:
    """Where the softmax of trained FMA layers goes."""
    found = load(results, 'softmax_shares/camvid_fma')
    if not found:
        return None
    # Of one share alone, all tokens are near.
    kept = {k: x for k, x in found['shares'].items() if len(x['even']) > 1}
    depth = max(len(kinds['even']) for kinds in kept.values())
    rows = []
    for name, kinds in kept.items():
        cells = [
            f'{a * 100:.1f} / {b * 100:.1f}'
            for a, b in zip(kinds['learned'], kinds['even'])
        ]
        rows.append([
            f'`{name.removeprefix("backbone.")}`', *cells,
            *['–'] * (depth - len(cells))
        ])
    command = f'{found["config"]} {found["checkpoint"]}'
    return (f'`{found["checkpoint"]}`, {found["batches"]} batches of the test '
            'data; shares of the softmax in percent, learned / with equal '
            'logits:\n\n' +
            table(['layer', 'near', *(f'level {i}'
                                      for i in range(1, depth))], rows) +
            '\n\n`python tools/analysis_tools/softmax_shares.py '
            f'{command} --batches {found["batches"]}`')
