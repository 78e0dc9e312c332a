"""Tables of the experiments.

Read from ``experiments.jsonl``, ``resolution.jsonl`` and
``ablations/*.jsonl``, which `tools/experiments/run.py collect` writes, and
from ``softmax_shares/*.json``.
"""
from math import isfinite, sqrt
from pathlib import Path
from statistics import mean
from typing import Any, Dict, List, Optional

from protocol import PROTOCOLS as RUNS  # isort: skip

from .formats import spread, standard_error, table
from .reading import read_lines, read_object

DATASETS = {
    'tiny_imagenet100': 'Tiny ImageNet, first 100 classes',
    'cifar10': 'CIFAR-10',
    'camvid': 'CamVid',
    'dubai_aerial': 'Dubai aerial imagery',
    'books': 'books',
}
# In short, and as the tables of models put it.
ATTENTIONS = {
    'fma': ('FMA', 'FMA, cell 4'),
    'fma_linear': ('FMA, pooled queries', 'FMA, cell 4, pooled queries'),
    'window': ('shifted windows', 'shifted windows'),
    'full': ('all tokens', 'all tokens'),
    'mano': ('MANO', 'MANO, windows of 8 × 8 on every scale'),
    'fmmformer':
    ('FMMformer', 'FMMformer, 7 × 7 tokens and two linear fields'),
}
# Images that a score is a share of.
TESTED = {'tiny_imagenet100': 5000, 'cifar10': 10000}
# Title of the column, the metafile's task and metric.
METRICS = {
    'top1': ('top-1, %', 'Image Classification', 'Top 1 Accuracy'),
    'mIoU': ('mIoU, %', 'Semantic Segmentation', 'mIoU'),
    'bpc': ('bits per character', 'Language Modelling', 'Bits per Character'),
}
# What every line holds.
REQUIRED = ('protocol', 'name', 'dataset', 'attention', 'config', 'options',
            'training', 'start', 'seed', 'device', 'versions', 'commit')
# And every line of a training.
OF_TRAINING = ('parameters', 'macs', 'epochs', 'iterations', 'batch_size',
               'metric', 'training_loss', 'training_memory')
# What FMA is to reach: (data set, one run, another, least difference of the
# two scores). Of bits per character, less is more.
TARGETS = (
    ('tiny_imagenet100', 'fma', 'window', 1.),
    ('tiny_imagenet100', 'fma-rotary', 'window', 1.),
    ('tiny_imagenet100', 'fma-rotary', 'window-rotary', 1.),
    ('tiny_imagenet100', 'fma', 'full', -.3),
    ('tiny_imagenet100', 'fma-rotary', 'full', -.3),
    ('tiny_imagenet100', 'fma-rotary', 'full-rotary', -.3),
    ('tiny_imagenet100', 'fma_linear', 'window', 0.),
    ('camvid', 'fma', 'window', 1.),
    ('camvid', 'fma-rotary', 'window', 1.),
    ('camvid', 'fma-rotary', 'window-rotary', 1.),
    ('camvid', 'fma', 'full', -.3),
    ('camvid', 'fma_linear', 'window', 0.),
    ('books', 'fma', 'full', -.02),
    ('books', 'fma', 'fmmformer', 0.),
    ('books', 'fma', 'fma-avg', 0.),
)
# What may follow the attention's name in two runs that are compared.
KINDS = ('', '-mild', '-mild-p2', '-mild-long', '-pretrained',
         '-long-pretrained', '-long-mild-pretrained', '-1k', '-4k',
         '-masked-1k')
PROTOCOLS = {
    'full':
    'Full protocol',
    'reduced':
    '**Reduced protocol**: minutes a run on one CPU core, far from '
    'converged, so that these numbers rank nothing but early learning',
}


def read_runs(path: Path) -> List[Dict[str, Any]]:
    """The lines of a file that the driver collects; none without the file.

    Raises:
        SystemExit: A line is damaged, lacks something, holds what is not
            known, or is there twice.
    """
    allowed = dict(protocol=PROTOCOLS, dataset=DATASETS, attention=ATTENTIONS)
    found = read_lines(path)
    seen = set()
    for number, line in enumerate(found, 1):

        def refuse(what: str) -> None:
            raise SystemExit(f'{path}, line {number}: {what}')

        for key in REQUIRED + (() if 'scale' in line else OF_TRAINING):
            if key not in line:
                refuse(f'has no {key}: collect again')
        for key, values in allowed.items():
            if line.get(key) not in values:
                refuse(f'{key} must be one of {list(values)}, got '
                       f'{line.get(key)!r}')
        # A size that did not fit has a reason instead.
        if 'reason' not in line:
            value = line.get('mIoU' if 'scale' in line else 'value')
            if not isinstance(value, (int, float)) or not isfinite(value):
                refuse(f'the score must be a number, got {value!r}')
        identity = tuple(
            line.get(key) for key in ('protocol', 'name', 'seed', 'scale'))
        if identity in seen:
            refuse('the same run is there twice')
        seen.add(identity)
    return found


def groups(lines: List[Dict[str, Any]]) -> List[List[Dict[str, Any]]]:
    """The lines by name: attentions in their order, seeds ascending."""
    order = list(ATTENTIONS)
    found: Dict[str, List[Dict[str, Any]]] = {}
    for line in sorted(
            lines,
            key=lambda x: (order.index(x['attention']), x['name'], x['seed'])):
        found.setdefault(line['name'], []).append(line)
    return list(found.values())


def by_protocol(lines: List[Dict[str, Any]]) -> Dict[str, List[Dict]]:
    """The lines of each protocol that has some."""
    found = {
        name: [line for line in lines if line['protocol'] == name]
        for name in PROTOCOLS
    }
    return {name: part for name, part in found.items() if part}


def label(line: Dict[str, Any]) -> str:
    """What a row is of: the attention, and in what it differs."""
    text = ATTENTIONS[line['attention']][0]
    # `camvid/fma-pretrained` and `books/fma-4k` say more than `camvid/fma`.
    rest = line['name'].partition('/')[2].removeprefix(line['attention'])
    return text + (f' ({rest[1:]})' if rest else '')


def places(lines: List[Dict[str, Any]]) -> str:
    """The machines and the software, each once, and the command.

    Args:
        lines: Of one protocol. The driver is asked for their data sets and
            those that they start from.
    """
    commits: Dict[str, Dict[str, None]] = {}
    for line in lines:
        machine = f'{line["device"]}, torch {line["versions"]["torch"]}'
        commit = (line['commit'] or 'unknown')[:10]
        commit += ' (modified)' if line.get('modified') else ''
        commits.setdefault(machine, {})[commit] = None
    machines = [
        f'{machine}, commit {", ".join(found)}'
        for machine, found in commits.items()
    ]
    starts = [line['start'] for line in lines if line.get('start')]
    names = starts + [line['name'] for line in lines]
    only = ' '.join(
        dict.fromkeys(f"'{name.partition('/')[0]}/*'" for name in names))
    return (f'{"; ".join(machines)}; `python tools/experiments/run.py '
            f'--protocol {lines[0]["protocol"]} --only {only}`')


def _number(value: Optional[float]) -> str:
    """Whole, or with two digits; a dash for what was not measured."""
    if value is None:
        return '–'
    return f'{value:,.0f}' if value >= 10 else f'{value:.2g}'


def _length(line: Dict[str, Any]) -> str:
    if line['epochs']:
        return f'{line["epochs"]} epochs'
    return f'{_number(line["iterations"])} × {line["batch_size"]}'


def _first_seed(line: Dict[str, Any], digits: int) -> List[str]:
    """Score and loss of seed 0, which is the first line where it is there."""
    if line['seed'] != 0:
        return ['–', '–']
    return [f'{line["value"]:.{digits}f}', f'{line["training_loss"]:.3f}']


def chance(lines: List[Dict[str, Any]]) -> str:
    """What the number of test images alone does to a score, as a clause."""
    number = TESTED.get(lines[0]['dataset'])
    if number is None:
        return ''
    share = mean(line['value'] for line in lines) / 100
    error = sqrt(share * (1 - share) / number) * 100
    return (f'; of one score of {share:.0%}, the {number:,} test images leave '
            f'a standard error of {error:.2f}')


def comparison(results: Path, dataset: str) -> Optional[str]:
    """The runs of a data set, a table for each protocol."""
    found = [
        line for line in read_runs(results / 'experiments.jsonl')
        if line['dataset'] == dataset
    ]
    parts = []
    for protocol, lines in by_protocol(found).items():
        metric = lines[0]['metric']
        speed = 'tokens' if metric == 'bpc' else 'images'
        digits = 3 if metric == 'bpc' else 2
        rows = [[
            label(group[0]), f'{group[0]["parameters"] / 1e6:.2f}',
            f'{group[0]["macs"] / 1e9:.3f}',
            _length(group[0]),
            spread([line['value'] for line in group], digits),
            str(len(group)), *_first_seed(group[0], digits),
            _number(group[0][f'{speed}_per_second'])
        ] for group in groups(lines)]
        head = [
            'attention', 'params, M', 'GMACs', 'training', METRICS[metric][0],
            'seeds', 'seed 0', 'its loss', f'{speed}/s'
        ]
        of_first = 'training speed is'
        # Only CUDA's allocator is asked.
        if any(line['training_memory'] for line in lines):
            head.append('MiB')
            of_first = 'training speed and memory are'
            for row, group in zip(rows, groups(lines)):
                row.append(_number(group[0]['training_memory']))
        parts.append(
            f'{DATASETS[dataset]}. {PROTOCOLS[protocol]}; {of_first} of the '
            'first seed, ± is the sample standard deviation over the seeds, '
            '"its loss" the mean over the last quarter of the training with '
            f'seed 0{chance(lines)}:\n\n{table(head, rows)}\n\n{places(lines)}'
        )
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
    # Rounded as scores are: 2.05 - 2.03 is not .02 in binary.
    return [
        round(sign * (value - values[other, seed]), 6)
        for (name, seed), value in values.items()
        if name == first and (other, seed) in values
    ]


def targets(results: Path) -> Optional[str]:
    """What was to be reached, and what was."""
    found = read_runs(results / 'experiments.jsonl')
    parts = []
    for protocol, lines in by_protocol(found).items():
        rows, compared = [], set()
        for dataset, first, other, least in TARGETS:
            for kind in KINDS:
                names = [f'{dataset}/{x}{kind}' for x in (first, other)]
                better = differences(lines, *names)
                if not better:
                    continue
                compared.update(names)
                beyond = mean(better) - least
                verdict = 'yes' if beyond >= 0 else 'no'
                error = standard_error(better)
                if error is None:
                    verdict += ', on one seed'
                elif abs(beyond) < error:
                    verdict += ', within the error'
                rows.append([
                    f'{DATASETS[dataset]}{kind.replace("-", ", ")}: '
                    f'`{first}` over `{other}`', f'{least:+g}',
                    spread(better, 3 if dataset == 'books' else 2, '+'),
                    str(len(better)), verdict
                ])
        if rows:
            used = [line for line in lines if line['name'] in compared]
            parts.append(
                f'{PROTOCOLS[protocol]}. Points of top-1 or mIoU, or bits per '
                'character saved, seed by seed: the mean, which decides, and '
                'the sample standard deviation. "Within the error": nearer to '
                'the bar than the standard error of the mean:\n\n' + table(
                    ['difference', 'at least', 'measured', 'seeds', 'reached'],
                    rows) + f'\n\n{places(used)}')
    return '\n\n'.join(parts) or None


def shares(results: Path) -> Optional[str]:
    """Where the softmax of trained FMA layers goes."""
    parts = []
    for path in sorted((results / 'softmax_shares').glob('*.json')):
        found = read_object(path, 'config', 'checkpoint', 'batches', 'shares')
        depth = max((len(rows['even']) for rows in found['shares'].values()),
                    default=0)
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
            f'`{found["checkpoint"]}`, {found["batches"]} batches of the test '
            'data; shares of the softmax in percent, learned / with equal '
            'logits:\n\n' +
            table(['layer', 'near'] + [f'level {i}'
                                       for i in range(1, depth)], rows) +
            '\n\n`python tools/analysis_tools/'
            f'softmax_shares.py {found["config"]} {found["checkpoint"]} '
            f'--batches {found["batches"]}`')
    return '\n\n'.join(parts) or None


def ablations(results: Path) -> Optional[str]:
    """What FMA does when one thing is changed."""
    changed = read_runs(results / 'ablations/cifar10.jsonl')
    # The unchanged layer, trained in the same way.
    unchanged = [
        line for line in read_runs(results / 'experiments.jsonl')
        if line['name'] == 'cifar10/fma'
    ]
    parts = []
    for protocol, lines in by_protocol(changed).items():
        base = by_protocol(unchanged).get(protocol, [])
        named = [('unchanged', group) for group in groups(base)]
        named += [(f'`{group[0]["name"].partition("/")[2]}`', group)
                  for group in groups(lines)]
        rows = [[
            name, f'{group[0]["parameters"] / 1e6:.2f}',
            f'{group[0]["macs"] / 1e9:.3f}',
            spread([line['value'] for line in group]),
            str(len(group))
        ] for name, group in named]
        parts.append(
            'FMA on CIFAR-10 (cell 4, rank 1, averages, mass, conditional '
            'positions) with one thing changed. '
            f'{PROTOCOLS[protocol]}{chance(base + lines)}:\n\n' + table(
                ['change', 'params, M', 'GMACs', 'top-1, %', 'seeds'], rows) +
            f'\n\n{places(base + lines)}')
    return '\n\n'.join(parts) or None


def kept(score: float, plain: Optional[float]) -> str:
    """A score as a share of that at the size of the config."""
    return f'{score / plain * 100:.0f}' if plain else '–'


def resolutions(results: Path) -> Optional[str]:
    """Whole images at sizes that models were not trained at."""
    parts = []
    found = read_runs(results / 'resolution.jsonl')
    for protocol, lines in by_protocol(found).items():
        plain = {
            (line['name'], line['seed']): line['mIoU']
            for line in lines if line['scale'] == 1 and 'reason' not in line
        }
        rows = [[
            f'{DATASETS[line["dataset"]]}, {label(line)}',
            f'{line["scale"]:g} ×', ' × '.join(map(str, line['shape'])),
            f'{line["mIoU"]:.2f}',
            kept(line['mIoU'], plain.get((line['name'], line['seed']))),
            f'{line["seconds"]["median"] * 1e3:,.0f}',
            _number(line['peak_memory_bytes'] / 2**20)
        ] for line in lines if 'reason' not in line]
        left_out = [
            f'{DATASETS[line["dataset"]]}, {label(line)} at '
            f'{line["scale"]:g} ×' for line in lines if 'reason' in line
        ]
        note = (f'\n\nOut of memory: {"; ".join(left_out)}.'
                if left_out else '')
        parts.append(
            'Whole images at multiples of the size that the config tests at; '
            'time and peak memory are of one image. '
            f'{PROTOCOLS[protocol]}:\n\n' + table([
                'set, attention', 'scale', 'pixels', 'mIoU, %', 'of 1 ×, %',
                'ms', 'MiB'
            ], rows) + f'{note}\n\n{places(lines)}')
    return '\n\n'.join(parts) or None


def missing(results: Path) -> str:
    """The runs of each protocol that have no result, or not at all sizes."""
    done = {(line['protocol'], line['name'], line['seed'], line.get('scale'))
            for name in ('experiments', 'resolution', 'ablations/cifar10')
            for line in read_runs(results / f'{name}.jsonl')}
    parts = []
    for name, make in RUNS.items():
        runs = make()
        left = [
            f'`{run.key}`' for run in runs
            if not all((name, run.name, run.seed, scale) in done
                       for scale in (None, *run.scales))
        ]
        text = f'{len(runs) - len(left)} of {len(runs)} runs'
        if 0 < len(left) < len(runs):
            text += f', without {", ".join(left)}'
        parts.append(f'{PROTOCOLS[name].partition(":")[0]}: {text}.')
    return '\n\n'.join(parts)
