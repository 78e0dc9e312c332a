"""The model zoo: shipped weights, tables of models, and metafiles.

A shipped model is one run of the experiments; its test is kept as
``zoo/PROTOCOL/NAME/seedN.json``, what ``tools/test.py CONFIG WEIGHTS --out``
writes, the log of its training beside it as ``seedN.log.jsonl``.
"""
import os
import re
from pathlib import Path
from statistics import mean
from typing import Any, Dict, List, Optional

from .experiments import ATTENTIONS, DATASETS, METRICS, PROTOCOLS, read_runs
from .formats import spread, table
from .reading import read_object

ROOT = Path(__file__).resolve().parents[2]
# Folders of configs whose metafiles and pages are filled from the results.
FOLDERS = ('camvid', 'cifar10', 'dubai_aerial', 'tiny_imagenet100')
NOT_YET = 'not measured yet'
# Attention layers that configs are shipped with.
LAYERS = {'FMAttention2D': 'fma', 'WindowAttention': 'window'}


def shipped(results: Path) -> Dict[str, Dict[str, Any]]:
    """The shipped models by config.

    Returns:
        For each: ``checkpoint``, ``log`` (a path or None), ``metric``,
        ``value``, and of the run that it is of ``protocol``, ``name``,
        ``seed`` and ``trained``, the value before the weights were rounded.

    Raises:
        SystemExit: A test is damaged, of another model, or of no run.
    """
    runs = {
        f'{line["protocol"]}/{line["name"]}/seed{line["seed"]}': line
        for line in read_runs(results / 'experiments.jsonl')
    }
    found: Dict[str, Dict[str, Any]] = {}
    for path in sorted((results / 'zoo').rglob('*.json')):
        test = read_object(path, 'config', 'checkpoint', 'metrics')
        key = path.relative_to(results / 'zoo').with_suffix('').as_posix()
        run, config, weights = runs.get(
            key), test['config'], test['checkpoint']
        if run is None or run['config'] != config:
            raise SystemExit(f'{path} is of {config}, which is not the config '
                             f'of a run {key} in experiments.jsonl')
        if not (ROOT / weights).is_file() or Path(weights).is_absolute():
            raise SystemExit(f'{path}: checkpoint {weights} is not a file of '
                             'this repository')
        if config in found:
            raise SystemExit(f'{path}: {config} has weights already')
        values = {k.rpartition('/')[2]: v for k, v in test['metrics'].items()}
        if run['metric'] not in values:
            raise SystemExit(f'{path} has no metric {run["metric"]}')
        log = path.with_suffix('.log.jsonl')
        found[config] = dict(
            checkpoint=weights,
            log=log if log.is_file() else None,
            metric=run['metric'],
            value=values[run['metric']],
            protocol=run['protocol'],
            name=run['name'],
            seed=run['seed'],
            trained=run['value'])
    return found


def zoo(results: Path) -> Optional[str]:
    """The shipped weights and what they score."""
    models = shipped(results)
    if not models:
        return None
    rows = [[
        f'`{model["checkpoint"]}`', f'`{model["name"]}`, seed {model["seed"]}',
        METRICS[model['metric']][0], f'{model["trained"]:.2f}',
        f'{model["value"]:.2f}'
    ] for model in models.values()]
    title = '. '.join(
        dict.fromkeys(PROTOCOLS[m['protocol']] for m in models.values()))
    commands = '\n'.join(f'python tools/test.py {config} \\\n    '
                         f'{model["checkpoint"]}'
                         for config, model in models.items())
    return (
        f'{title}. Stored in float16:\n\n' +
        table(['weights', 'run', 'metric', 'as trained', 'as shipped'], rows) +
        f'\n\nWith the sets under `data/`:\n\n```bash\n{commands}\n```')


def scores(results: Path) -> Dict[str, List[List[Dict[str, Any]]]]:
    """Results of configs as they are, by config: the seeds of each run.

    Raises:
        SystemExit: A config is used by two protocols.
    """
    found: Dict[str, Dict[str, List[Dict[str, Any]]]] = {}
    for line in read_runs(results / 'experiments.jsonl'):
        if line['options'] or line['training'] or line.get('base'):
            continue
        named = found.setdefault(line['config'], {})
        if any(seeds[0]['protocol'] != line['protocol']
               for seeds in named.values()):
            raise SystemExit(f'{line["config"]} has results of two protocols')
        named.setdefault(line['name'], []).append(line)
    return {config: list(named.values()) for config, named in found.items()}


def _entries(text: str) -> List[str]:
    """A metafile's head and its models, one text each."""
    return re.split(r'(?m)^(?=  - Name: .*\n    In Collection: )', text)


def _field(entry: str, name: str, default: Optional[str] = None) -> str:
    found = re.search(rf'(?m)^ +{name}: (.+)$', entry)
    return found[1] if found or default is None else default


def _attention(entry: str) -> str:
    """The layer of a metafile's model, and what else its twins have not."""
    title = ATTENTIONS[LAYERS[_field(entry, 'Attention')]][1]
    positions = _field(entry, 'Positions', '')
    length = _field(entry, 'Iterations', '')
    return (title + (f', positions {positions}' if positions else '') +
            (f'; {int(length):,} iterations' if length else ''))


def _chosen(runs: List[List[Dict[str, Any]]], started: bool,
            name: Optional[str]) -> List[Dict[str, Any]]:
    """The seeds of one run: that of a name, or else the one with most.

    Args:
        runs: Of one config, the seeds of each.
        started: Those from other weights, or those from scratch.
        name: Of the run whose weights are shipped.
    """
    fitting = [
        seeds for seeds in runs if (seeds[0]['start'] is not None) == started
    ]
    return max(
        fitting,
        key=lambda seeds: (seeds[0]['name'] == name, len(seeds)),
        default=[])


def _score(lines: List[Dict[str, Any]]) -> str:
    """The mean over the seeds, and how many they are; a dash for none."""
    values = [line['value'] for line in lines]
    if len(values) < 2:
        return spread(values) if values else '–'
    return f'{spread(values)} ({len(values)} seeds)'


def models(results: Path, folder: str) -> str:
    """A family's models: sizes from its metafile, scores from the runs."""
    known, weights = scores(results), shipped(results)
    text = (ROOT / 'configs' / folder / 'metafile.yml').read_text()
    segments = 'Head' in text
    rows = []
    for entry in _entries(text)[1:]:
        name, config = _field(entry, '- Name'), _field(entry, 'Config')
        runs, model = known.get(config, []), weights.get(config, {})
        values = [
            _score(_chosen(runs, started, model.get('name')))
            for started in (False, True)[:1 + segments]
        ]
        if not runs:
            values[0] = NOT_YET
        link = '–'
        if model:
            links = dict(model=ROOT / model['checkpoint'], log=model['log'])
            link = ', '.join(
                f'[{what}]({os.path.relpath(path, ROOT / "configs" / folder)})'
                for what, path in links.items() if path)
        rows.append([
            f'[{name}]({name}.py)',
            _attention(entry),
            f'{int(_field(entry, "Parameters")) / 1e6:.2f} M',
            f'{int(_field(entry, "FLOPs")) / 1e9:.3f} G', *values, link
        ])
    head = ['Config', 'Attention', 'Parameters', 'MACs']
    if segments:
        head += ['mIoU, from scratch', 'mIoU, pretrained']
    else:
        head += ['Top-1']
    return table([*head, 'Weights'], rows)


def fill_metafile(text: str, results: Path) -> str:
    """A metafile with the weights of its models and their results.

    Args:
        text: The metafile.
        results: The folder of results.

    Returns:
        The metafile with ``Training`` and ``Results`` for each model that
        was measured, and with ``Weights`` if it is shipped: then, the results
        are those of the weights.

    Raises:
        SystemExit: See :func:`shipped`.
    """
    known, measured = shipped(results), scores(results)
    head, *entries = _entries(text)
    for i, entry in enumerate(entries):
        # A block ends where a line is indented as little as its first.
        entry = re.sub(r'(?m)^    Results:\n(?:      .*\n)+', '', entry)
        entry = re.sub(r'(?m)^    (?:Weights|Training): .*\n', '', entry)
        config = _field(entry, 'Config')
        if config in known:
            model = known[config]
            entry = (f'{entry.rstrip()}\n'
                     f'    Weights: {model["checkpoint"]}\n' +
                     _result(config, model, [model['seed']]))
        elif config in measured:
            # From scratch or from weights, whichever are more.
            lines = max((_chosen(measured[config], started, None)
                         for started in (False, True)),
                        key=len)
            value = mean(line['value'] for line in lines)
            entry = f'{entry.rstrip()}\n' + _result(
                config, dict(lines[0], value=value),
                [line['seed'] for line in lines])
        entries[i] = entry
    return head + ''.join(entries)


def _result(config: str, run: Dict[str, Any], seeds: List[int]) -> str:
    """The lines of a metafile about a training and its score."""
    _, task, title = METRICS[run['metric']]
    of = ('seed ' if len(seeds) == 1 else 'mean of seeds ') + ', '.join(
        map(str, seeds))
    return (f'    Training: {run["protocol"]} protocol, {run["name"]}, {of}\n'
            '    Results:\n'
            f'      - Task: {task}\n'
            f'        Dataset: {DATASETS[Path(config).parent.name]}\n'
            '        Metrics:\n'
            f'          {title}: {run["value"]:.2f}\n')
