"""Tables of the experiments, and the results in the metafiles.

Read from ``experiments.jsonl``, ``resolution.jsonl`` and
``ablations/*.jsonl``, which `tools/experiments/run.py collect` writes, and
``zoo/*.json``, the tests of shipped weights.
"""
import json
import os
import re
from math import sqrt
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from markdown_table import table

ROOT = Path(__file__).resolve().parents[1]
# Folders of configs whose metafiles and pages are filled from the results.
FOLDERS = ('camvid', 'cifar10', 'dubai_aerial', 'tiny_imagenet100')
DATASETS = {
    'tiny_imagenet100': 'Tiny ImageNet, first 100 classes',
    'cifar10': 'CIFAR-10',
    'camvid': 'CamVid',
    'dubai_aerial': 'Dubai aerial imagery',
    'books': 'books',
}
# By the values in the results, and by what config names begin with.
ATTENTIONS = {
    'fma': ('FMA', 'fma', 'FMA, cell 4'),
    'fma_linear':
    ('FMA, pooled queries', 'fma-linear', 'FMA, cell 4, pooled queries'),
    'window': ('shifted windows', 'swin', 'shifted windows'),
    'full': ('all tokens', 'full', 'all tokens'),
    'mano': ('MANO', 'mano', 'MANO, windows of 8 × 8 on every scale'),
    'fmmformer': ('FMMformer', 'fmmformer',
                  'FMMformer, 7 × 7 tokens and two linear fields'),
}
# Title of the column, the metafile's task and metric.
METRICS = {
    'top1': ('top-1, %', 'Image Classification', 'Top 1 Accuracy'),
    'mIoU': ('mIoU, %', 'Semantic Segmentation', 'mIoU'),
    'bpc': ('bits per character', 'Language Modelling', 'Bits per Character'),
}
# What FMA is to reach: (data set, one run, another, least difference of the
# two scores). Of bits per character, less is more.
TARGETS = (
    ('tiny_imagenet100', 'fma', 'window', 1.),
    ('tiny_imagenet100', 'fma', 'full', -.3),
    ('tiny_imagenet100', 'fma_linear', 'window', 0.),
    ('camvid', 'fma', 'window', 1.),
    ('camvid', 'fma', 'full', -.3),
    ('camvid', 'fma_linear', 'window', 0.),
    ('books', 'fma', 'full', -.02),
    ('books', 'fma', 'fmmformer', 0.),
    ('books', 'fma', 'fma-avg', 0.),
)
# What may follow the attention's name in two runs that are compared.
KINDS = ('', '-pretrained', '-1k', '-4k')
PROTOCOLS = {
    'full':
    'Full protocol',
    'reduced':
    '**Reduced protocol**: minutes a run on one CPU core, far from '
    'converged, so that these numbers rank nothing but early learning',
}
NOT_YET = 'not measured yet'


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """The lines of a file of results; none where it is not there.

    Raises:
        SystemExit: A line is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise SystemExit(f'{path}, line {number} cannot be read: {error}')
    return found


def spread(values: List[float], digits: int = 2, sign: str = '') -> str:
    """The mean, and the standard deviation where there are several."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f'{mean:{sign}.{digits}f}'
    square = sum((value - mean)**2 for value in values) / (len(values) - 1)
    return f'{mean:{sign}.{digits}f} ± {sqrt(square):.{digits}f}'


def groups(lines: List[Dict[str, Any]]) -> List[List[Dict[str, Any]]]:
    """The lines by name, in the order of the first of each."""
    found: Dict[str, List[Dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line['name'], []).append(line)
    return list(found.values())


def label(line: Dict[str, Any]) -> str:
    """What a row is of: the attention, and in what it differs."""
    text = ATTENTIONS[line['attention']][0]
    # `camvid/fma-pretrained` and `books/fma-4k` say more than `camvid/fma`.
    rest = line['name'].partition('/')[2].removeprefix(line['attention'])
    return text + (f' ({rest[1:]})' if rest else '')


def places(lines: List[Dict[str, Any]]) -> str:
    """One line about the machines and the software, each once."""
    return '; '.join(
        dict.fromkeys(
            f'{line["device"]}, torch {line["versions"]["torch"]}, commit '
            f'{(line["commit"] or "unknown")[:10]}' for line in lines))


def _number(value: Optional[float], form: str = ',.0f') -> str:
    return '–' if value is None else f'{value:{form}}'


def _length(line: Dict[str, Any]) -> str:
    if line['epochs']:
        return f'{line["epochs"]} epochs'
    return f'{_number(line["iterations"])} × {line["batch_size"]}'


def comparison(results: Path, dataset: str) -> Optional[str]:
    """The runs of a data set, a table for each protocol."""
    found = [
        line for line in read_lines(results / 'experiments.jsonl')
        if line['dataset'] == dataset
    ]
    parts = []
    for protocol, title in PROTOCOLS.items():
        lines = [line for line in found if line['protocol'] == protocol]
        if not lines:
            continue
        first = lines[0]
        speed = 'tokens' if first['metric'] == 'bpc' else 'images'
        rows = [[
            label(group[0]), f'{group[0]["parameters"] / 1e6:.2f}',
            f'{group[0]["macs"] / 1e9:.3f}',
            _length(group[0]),
            spread([line['value']
                    for line in group], 3 if first['metric'] == 'bpc' else 2),
            str(len(group)),
            _number(group[0][f'{speed}_per_second']),
            _number(group[0]['training_memory'])
        ] for group in groups(lines)]
        parts.append(
            f'{DATASETS[dataset]}. {title}; training speed and memory are '
            'of the first seed:\n\n' + table([
                'attention', 'params, M', 'GMACs', 'training', METRICS[
                    first['metric']][0], 'seeds', f'{speed}/s', 'MiB'
            ], rows) + f'\n\n{places(lines)}; `python tools/experiments/run.py'
            f' --protocol {protocol} --only \'{dataset}/*\'`')
    return '\n\n'.join(parts) or None


def differences(lines: List[Dict[str, Any]], first: str,
                other: str) -> List[float]:
    """How much better one run is than another, seed by seed.

    Args:
        lines: Results of one protocol.
        first, other: Names of runs.
    """
    values = {(line['name'], line['seed']): line['value'] for line in lines}
    sign = -1 if any(line['name'] == first and line['metric'] == 'bpc'
                     for line in lines) else 1
    return [
        sign * (value - values[other, seed])
        for (name, seed), value in values.items()
        if name == first and (other, seed) in values
    ]


def targets(results: Path) -> Optional[str]:
    """What was to be reached, and what was."""
    found = read_lines(results / 'experiments.jsonl')
    parts = []
    for protocol, title in PROTOCOLS.items():
        lines = [line for line in found if line['protocol'] == protocol]
        rows = []
        for dataset, first, other, least in TARGETS:
            digits = 3 if dataset == 'books' else 2
            for kind in KINDS:
                better = differences(lines, f'{dataset}/{first}{kind}',
                                     f'{dataset}/{other}{kind}')
                if not better:
                    continue
                mean = sum(better) / len(better)
                rows.append([
                    f'{DATASETS[dataset]}{kind.replace("-", ", ")}: '
                    f'`{first}` over `{other}`', f'{least:+g}',
                    spread(better, digits, '+'),
                    str(len(better)), 'yes' if mean >= least else 'no'
                ])
        if rows:
            parts.append(
                f'{title}. Points of top-1 or mIoU, or bits per '
                'character saved; of each seed, then the mean:\n\n' + table(
                    ['difference', 'at least', 'measured', 'seeds', 'reached'],
                    rows))
    return '\n\n'.join(parts) or None


def shares(results: Path) -> Optional[str]:
    """Where the softmax of trained FMA layers goes."""
    parts = []
    for path in sorted((results / 'softmax_shares').glob('*.json')):
        found = json.loads(path.read_text())
        depth = max(len(rows['even']) for rows in found['shares'].values())
        rows = []
        for name, kinds in found['shares'].items():
            if len(kinds['even']) == 1:
                continue  # all tokens are near
            cells = [
                f'{a * 100:.1f} / {b * 100:.1f}'
                for a, b in zip(kinds['learned'], kinds['even'])
            ]
            rows.append([
                f'`{name.removeprefix("backbone.")}`',
                *(cells + ['–'] * (depth - len(cells)))
            ])
        parts.append(
            f'`{Path(found["config"]).stem}`, {found["batches"]} batches of '
            'the test data; shares of the softmax in percent, learned / with '
            'equal logits:\n\n' +
            table(['layer', 'near'] + [f'level {i}'
                                       for i in range(1, depth)], rows))
    if not parts:
        return None
    return '\n\n'.join(parts) + (
        '\n\n`python tools/analysis_tools/softmax_shares.py CONFIG CHECKPOINT`'
    )


def ablations(results: Path) -> Optional[str]:
    """What FMA does when one thing is changed."""
    changed = read_lines(results / 'ablations/cifar10.jsonl')
    # The unchanged layer, trained in the same way.
    unchanged = [
        line for line in read_lines(results / 'experiments.jsonl')
        if line['name'] == 'cifar10/fma'
    ]
    parts = []
    for protocol, title in PROTOCOLS.items():
        base, lines = ([
            line for line in found if line['protocol'] == protocol
        ] for found in (unchanged, changed))
        if not lines:
            continue
        rows = [[
            f'`{group[0]["name"].partition("/")[2]}`' if group[0] not in base
            else 'unchanged', f'{group[0]["parameters"] / 1e6:.2f}',
            f'{group[0]["macs"] / 1e9:.3f}',
            spread([line['value'] for line in group]),
            str(len(group))
        ] for group in groups(base + lines)]
        parts.append(
            'FMA on CIFAR-10 (cell 4, rank 1, averages, mass, conditional '
            f'positions) with one thing changed. {title}:\n\n' + table(
                ['change', 'params, M', 'GMACs', 'top-1, %', 'seeds'], rows) +
            f'\n\n{places(lines)}; `python '
            f'tools/experiments/run.py --protocol {protocol} '
            '--only \'ablations/*\'`')
    return '\n\n'.join(parts) or None


def resolutions(results: Path) -> Optional[str]:
    """Whole images at sizes that models were not trained at."""
    lines = read_lines(results / 'resolution.jsonl')
    if not lines:
        return None
    rows = [[
        f'{DATASETS[line["dataset"]]}, {label(line)}', f'{line["scale"]:g} ×',
        ' × '.join(map(str, line['shape'])), f'{line["mIoU"]:.2f}',
        f'{line["seconds"]["median"] * 1e3:,.0f}',
        _number(line['peak_memory_bytes'] / 2**20)
    ] for line in lines if 'reason' not in line]
    left_out = [
        f'{DATASETS[line["dataset"]]}, {label(line)} at {line["scale"]:g} ×'
        for line in lines if 'reason' in line
    ]
    note = f'\n\nOut of memory: {"; ".join(left_out)}.' if left_out else ''
    return (
        'Whole images, larger than the config tests at; time and peak '
        'memory are of one image:\n\n' +
        table(['set, attention', 'scale', 'pixels', 'mIoU, %', 'ms', 'MiB'],
              rows) + f'{note}\n\n{places(lines)}; `python '
        'tools/analysis_tools/benchmark_resolution.py`')


def scores(results: Path) -> Dict[str, List[Dict[str, Any]]]:
    """Lines by config: trained from scratch, nothing changed."""
    found: Dict[str, List[Dict[str, Any]]] = {}
    for line in read_lines(results / 'experiments.jsonl'):
        if not line['options'] and line['start'] is None:
            found.setdefault(line['config'], []).append(line)
    return found


def shipped(results: Path) -> Dict[str, Dict[str, Any]]:
    """Tests of the shipped weights, by config.

    They are what ``tools/test.py CONFIG WEIGHTS --out`` writes to the folder
    ``zoo`` of the results.
    """
    found = {}
    for path in sorted((results / 'zoo').glob('*.json')):
        try:
            test = json.loads(path.read_text())
            found[test['config']] = test
        except (ValueError, KeyError) as error:
            raise SystemExit(f'{path} cannot be read: {error}')
    return found


def _score(test: Dict[str, Any]) -> Tuple[str, float]:
    """The metric of a test by its name in METRICS, and its value."""
    name, value = next((key.rpartition('/')[2], value)
                       for key, value in test['metrics'].items()
                       if key.rpartition('/')[2] in METRICS)
    return name, value


def zoo(results: Path) -> Optional[str]:
    """The shipped weights and what they score."""
    tests = shipped(results)
    if not tests:
        return None
    rows = []
    for config, test in tests.items():
        metric, value = _score(test)
        dataset = Path(config).parent.name
        rows.append([
            f'`{test["checkpoint"]}`', DATASETS[dataset], METRICS[metric][0],
            f'{value:.2f}'
        ])
    first = next(iter(tests.values()))
    return (
        'Weights of the reduced protocol (minutes on one CPU core), '
        'float16:\n\n' + table(['weights', 'set', 'metric', 'score'], rows) +
        '\n\nTo test the first again, with its set under `data/`:\n\n```bash\n'
        f'python tools/test.py {first["config"]} \\\n    '
        f'{first["checkpoint"]}\n```')


def _entries(text: str) -> List[str]:
    """A metafile's head and its models, one text each."""
    return re.split(r'(?m)^(?=  - Name: .*\n    In Collection: )', text)


def _field(entry: str, name: str) -> str:
    return re.search(rf'(?m)^ +{name}: (.+)$', entry)[1]


def models(results: Path, folder: str) -> str:
    """A family's models: sizes from its metafile, scores from the runs."""
    known, weights = scores(results), shipped(results)
    text = (ROOT / 'configs' / folder / 'metafile.yml').read_text()
    rows = []
    for entry in _entries(text)[1:]:
        name, config = _field(entry, '- Name'), _field(entry, 'Config')
        kind = name.partition('-nano')[0]
        attention = next(a for a in ATTENTIONS.values() if a[1] == kind)[2]
        lines = known.get(config, [])
        rows.append([
            f'[{name}]({name}.py)', attention,
            f'{int(_field(entry, "Parameters")) / 1e6:.2f} M',
            f'{int(_field(entry, "FLOPs")) / 1e9:.3f} G',
            spread([line['value'] for line in lines]) if lines else NOT_YET,
            _link(weights[config], folder) if config in weights else '–'
        ])
    metric = 'mIoU' if 'Head' in text else 'Top-1'
    return table([
        'Config', 'Attention', 'Parameters', 'MACs', f'{metric}, from scratch',
        f'Weights, their {metric}'
    ], rows)


def _link(test: Dict[str, Any], folder: str) -> str:
    """A link from the page of a folder to weights, and their score."""
    target = os.path.relpath(test['checkpoint'], f'configs/{folder}')
    return f'[model]({target}), {_score(test)[1]:.2f}'


def fill_metafile(text: str, results: Path) -> str:
    """A metafile with the results and weights of its models, and no others.

    Args:
        text: The metafile.
        results: The folder of results.

    Returns:
        The metafile with ``Weights`` for each model that has some and
        ``Results`` for each measured one: of its weights where there are
        any, else the mean over the seeds, trained from scratch.
    """
    known, tests = scores(results), shipped(results)
    head, *entries = _entries(text)
    for i, entry in enumerate(entries):
        # A block ends where a line is indented as little as its first.
        entry = re.sub(r'(?m)^    Results:\n(?:      .*\n)+', '', entry)
        entry = re.sub(r'(?m)^    Weights: .*\n', '', entry)
        config = _field(entry, 'Config')
        values = [line['value'] for line in known.get(config, [])]
        if config in tests:
            metric, value = _score(tests[config])
            values = [value]
            entry = (f'{entry.rstrip()}\n'
                     f'    Weights: {tests[config]["checkpoint"]}\n')
        elif values:
            metric = known[config][0]['metric']
        if values:
            _, task, title = METRICS[metric]
            entry = (f'{entry.rstrip()}\n'
                     '    Results:\n'
                     f'      - Task: {task}\n'
                     f'        Dataset: {DATASETS[Path(config).parent.name]}\n'
                     '        Metrics:\n'
                     f'          {title}: {sum(values) / len(values):.2f}\n')
        entries[i] = entry
    return head + ''.join(entries)
