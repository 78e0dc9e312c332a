"""Tables of the experiments, from ``experiments.jsonl``.

`benchmarks/experiments/run.py collect` writes it, a line a run.
"""
import json
from math import isfinite
from pathlib import Path
from typing import Any, Dict, List, Optional

from .formats import METRICS, Cell, fixed, load, section, spread

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


def read_runs(results: Path, protocol: str) -> List[Dict[str, Any]]:
    """The lines of a protocol's runs; none without the file."""
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
        if line['protocol'] == protocol:
            found.append(line)
    return found


def label(line: Dict[str, Any]) -> str:
    """What a row is of: the attention, and in what it differs."""
    text = ATTENTIONS[line['attention']]
    # `camvid/fma-pretrained` and `books/fma-4k` say more than `camvid/fma`.
    rest = line['name'].partition('/')[2].removeprefix(line['attention'])
    return text + (f' ({rest.removeprefix("-")})' if rest else '')


def groups(results: Path, protocol: str, group: str) -> List[Dict[str, Any]]:
    """The runs whose name begins with a group's; ``seeds`` holds all lines."""
    found: Dict[str, Dict[str, Any]] = {}
    for line in sorted(read_runs(results, protocol), key=lambda x: x['seed']):
        if line['name'].startswith(f'{group}/'):
            run = found.setdefault(line['name'], dict(line, seeds=[]))
            run['seeds'].append(line)
    order = list(ATTENTIONS)
    return sorted(
        found.values(),
        key=lambda run: (order.index(run['attention']), run['name']))


def places(lines: List[Dict[str, Any]], group: str) -> str:
    """The machines, the software and the command."""
    commits: Dict[str, Dict[str, None]] = {}
    for line in lines:
        machine = f'{line["device"]}, torch {line["versions"]["torch"]}'
        commit = (line['commit'] or 'unknown')[:10]
        commit += ' (modified)' if line['modified'] else ''
        commits.setdefault(machine, {})[commit] = None
    starts = {(line['start'] or group).partition('/')[0] for line in lines}
    only = ' '.join(f"'{name}/*'"
                    for name in [*sorted(starts - {group}), group])
    return '; '.join([
        *(f'{machine}, commit {", ".join(found)}'
          for machine, found in commits.items()),
        '`python benchmarks/experiments/run.py '
        f'--protocol {lines[0]["protocol"]} --only {only}`'
    ])


def rounded(key: str) -> Cell:
    """Whole, or with two digits; a dash for what was not measured."""
    return lambda run: (f'{run[key]:.2g}'
                        if run[key] and run[key] < 10 else fixed(key, 0)(run))


def length(run: dict) -> str:
    return (f'{run["epochs"]} epochs' if run['epochs'] else
            f'{run["iterations"]:,} × {run["batch_size"]}')


def comparison(results: Path, group: str) -> Optional[str]:
    """The runs of a group, a table for each protocol."""
    parts = []
    for protocol, title in PROTOCOLS.items():
        rows = groups(results, protocol, group)
        if not rows:
            continue
        lines = [line for run in rows for line in run['seeds']]
        metric, seed = METRICS[rows[0]['metric']], f'seed {rows[0]["seed"]}'
        digits = 3 if rows[0]['metric'] == 'bpc' else 2
        columns = {
            'params, M': fixed('parameters', 2, 1e6),
            'GMACs': fixed('macs', 3, 1e9),
            'training': length,
            metric: lambda r: spread([x['value'] for x in r['seeds']], digits),
            'seeds': lambda run: str(len(run['seeds'])),
            seed: fixed('value', digits),
            'its loss': fixed('training_loss', 3),
            'samples/s': rounded('samples_per_second')
        }
        # Only CUDA's allocator is asked.
        if any(line['training_memory'] for line in lines):
            columns['MiB'] = rounded('training_memory')
        parts.append(
            section(
                f'{DATASETS[group]}. {title}; speed and memory of training '
                'are of the first seed, ± is the sample standard deviation '
                'over the seeds, "its loss" the mean over the last quarter of '
                'the training:', rows, columns, 'attention', label) +
            f'\n\n{places(lines, group)}')
    return '\n\n'.join(parts) or None


def resolutions(results: Path) -> Optional[str]:
    """Whole images at multiples of the size that a config tests at."""
    parts = []
    for protocol, title in PROTOCOLS.items():
        rows = [x for x in read_runs(results, protocol) if x['sizes']]
        parts.append(
            section(
                'mIoU in percent, and as a share of that at the size of the '
                f'config. {title}:', rows, {
                    f'{x} ×':
                    lambda r, x=x:
                    f'{r["sizes"][x]:.2f} ({r["sizes"][x] / r["value"]:.0%})'
                    for x in (rows[0]['sizes'] if rows else ())
                }, 'set, attention',
                lambda r: f'{DATASETS[r["dataset"]]}, {label(r)}'))
    return '\n\n'.join(filter(None, parts)) or None


def shares(results: Path) -> Optional[str]:
    """Where the softmax of trained FMA layers goes."""
    found = load(results, 'softmax_shares/camvid_fma')
    if not found:
        return None
    # Of one share alone, all tokens are near.
    kept = {k: x for k, x in found['shares'].items() if len(x['even']) > 1}
    depth = max(len(kinds['even']) for kinds in kept.values())

    def cell(name: str, level: int) -> str:
        pair = [kept[name][kind][level:] for kind in ('learned', 'even')]
        return ' / '.join(f'{x[0] * 100:.1f}' for x in pair if x) or '–'

    return section(
        f'`{found["checkpoint"]}`, {found["batches"]} batches of the test '
        'data; shares of the softmax in percent, learned / with equal '
        'logits:', list(kept), {
            f'level {i}' if i else 'near': lambda name, i=i: cell(name, i)
            for i in range(depth)
        }, 'layer', lambda name: f'`{name.removeprefix("backbone.")}`') + (
            '\n\n`python tools/analysis_tools/softmax_shares.py '
            f'{found["config"]} {found["checkpoint"]} '
            f'--batches {found["batches"]}`')
