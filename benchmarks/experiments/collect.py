"""From work folders to lines of results."""

import fnmatch
import json
import re
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fma_vision.engine import UserError
from fma_vision.utils.configs import input_shape, load_model_config, measure
from fma_vision.utils.files import write_bytes
from fma_vision.utils.results import read_json, read_lines, read_log

import curves  # isort: skip
from protocol import LAST_ONLY, PROTOCOLS, TASKS  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results'
PICTURES = ROOT / 'docs/assets'
# What tests call it, and what the results do.
METRICS = {'accuracy/top1': 'top1', 'mIoU': 'mIoU', 'bpc': 'bpc'}
# Options that a protocol gives to all its trainings.
COMMON = (*LAST_ONLY, 'optim_wrapper.dtype', 'train_dataloader.num_workers')
# One line for each; a run made again takes the place of its former line.
IDENTITY = ('protocol', 'name', 'seed', 'scale')


def _machine(environment: Dict[str, Any]) -> Dict[str, Any]:
    """The part of an environment that a line holds."""
    commit = environment.get('commit') or {}
    return dict(
        device=environment.get('device_name') or environment['cpu'],
        threads=environment['threads'],
        versions=environment['packages'],
        commit=commit.get('hash'),
        modified=commit.get('modified'),
        date=environment['date'])


def _median(lines: List[dict], key: str) -> Any:
    """Median of what the training logged, None where it did not."""
    values = [line[key] for line in lines if key in line]
    return statistics.median(values) if values else None


def _identity(note: Dict[str, Any]) -> Dict[str, Any]:
    """What a run is, from the note in its folder."""
    given = {**note['options'], **note['train_options']}
    model = {k: v for k, v in given.items() if k.startswith('model.')}
    return dict(
        protocol=note['protocol'],
        name=note['name'],
        task=TASKS[note['dataset']],
        dataset=note['dataset'],
        model=re.split(r'_\d+xb',
                       Path(note['config']).stem)[0],
        attention=note['attention'],
        config=note['config'],
        # Loaders and loops do not make another model, but another training.
        options=model,
        training={
            key: value
            for key, value in given.items() if key not in (*model, *COMMON)
        },
        start=note['start'],
        seed=note['seed'])


def _trained_to_the_end(cfg: Any, training: List[dict]) -> bool:
    """Whether what a training logged goes up to its last step."""
    last = training[-1] if training else {}
    steps = cfg.train_cfg.get('max_iters')
    if steps is None:
        return last.get('epoch') == cfg.train_cfg.max_epochs
    # What is logged last need not be the last step.
    return last.get('step', 0) > steps - cfg.default_hooks.logger.interval


def run_line(folder: Path) -> Dict[str, Any]:
    """The result of one run.

    Args:
        folder: Its work folder.

    Raises:
        UserError: Something is missing or damaged.
    """
    note, test = (
        read_json(folder / name) for name in ('run.json', 'test.json'))
    lines, config = read_log(folder)
    cfg = load_model_config(str(config))
    metric = next((m for m in METRICS if m in test.get('metrics', {})), None)
    if metric is None:
        raise UserError(f'{folder}/test.json has none of {list(METRICS)}')
    cost = measure(cfg, input_shape(cfg))['model']
    training = [line for line in lines if 'loss' in line]
    if not _trained_to_the_end(cfg, training):
        raise UserError(f'{folder}: the log ends before the training')
    batch = cfg.train_dataloader.batch_size
    seconds, memory = _median(training, 'time'), _median(training, 'memory')
    # Much less noisy than a score: layers see the same images in one order.
    last = [line['loss'] for line in training[len(training) * 3 // 4:]]
    text = TASKS[note['dataset']] == 'language'
    rate = batch / seconds if seconds else None
    # Speed and memory are of the training, which may have been elsewhere.
    trained = note.get('environment') or dict(
        test['environment'], commit=note['commit'])
    return dict(
        **_identity(note),
        parameters=cost.parameters,
        macs=cost.macs,
        shape=list(input_shape(cfg)),
        epochs=cfg.train_cfg.get('max_epochs'),
        iterations=cfg.train_cfg.get('max_iters') or training[-1]['step'],
        batch_size=batch,
        amp=note['amp'],
        metric=METRICS[metric],
        value=test['metrics'][metric],
        training_loss=round(statistics.mean(last), 4),
        images_per_second=None if text else rate,
        tokens_per_second=(rate *
                           input_shape(cfg)[0] if text and rate else None),
        # Only CUDA's allocator is asked, in MiB.
        training_memory=memory,
        **_machine(trained))


def resolution_lines(folder: Path) -> List[Dict[str, Any]]:
    """The results of a run at several resolutions, if it has them.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / 'resolution.json'
    if not path.is_file():
        return []
    note, found = read_json(folder / 'run.json'), read_json(path)
    return [
        dict(**_identity(note), **row, **_machine(found['environment']))
        for row in found['rows']
    ]


def key_of(line: Dict[str, Any]) -> Tuple:
    """What makes a line the result of one run."""
    return tuple(line.get(name) for name in IDENTITY)


def run_curve(folder: Path) -> Dict[str, Any]:
    """The curves of one run, see :func:`curves.curve_of`."""
    lines, config = read_log(folder)
    epochs = load_model_config(str(config)).train_cfg.get('max_epochs')
    key = next((m for m in METRICS if any(m in line for line in lines)), '')
    return curves.curve_of(lines, epochs, key)


def append(path: Path, lines: List[Dict[str, Any]]) -> int:
    """Add lines to a file, each run once.

    Args:
        path: A file of one JSON object a line.
        lines: The lines. One of a run that the file has takes its place.

    Returns:
        int: How many lines are new or other than before.

    Raises:
        UserError: A line of the file is damaged.
    """
    known: Dict[Tuple, Dict[str, Any]] = {}
    if path.is_file():
        known = {key_of(line): line for line in read_lines(path)}
    changed = sum(known.get(key_of(line)) != line for line in lines)
    known.update((key_of(line), line) for line in lines)
    if changed:
        text = ''.join(
            json.dumps(line, ensure_ascii=False) + '\n'
            for line in known.values())
        write_bytes(path, text.encode())
    return changed


def _folders(root: Path, protocol: Optional[str],
             only: Sequence[str]) -> List[Tuple[Path, str, str]]:
    """Folders of finished runs, with their protocol and key.

    Raises:
        UserError: A pattern matches none that has begun.
    """
    found, unused = [], set(only)
    for path in sorted(root.glob('**/run.json')):
        folder = path.parent
        name, _, key = folder.relative_to(root).as_posix().partition('/')
        matching = {x for x in only if fnmatch.fnmatchcase(key, x)}
        if protocol not in (None, name) or not matching:
            continue
        unused -= matching
        if (folder / 'test.json').is_file():
            found.append((folder, name, key))
        else:
            print(f'{folder}: not finished')
    if unused:
        raise UserError(f'--only {min(unused)!r} matches no folder under '
                        f'{root}')
    return found


def check_settings(folder: Path, protocol: str, key: str) -> None:
    """See that a folder is of the run that has its name now.

    Raises:
        UserError: There is no such run, or it has other settings.
    """
    runs = PROTOCOLS[protocol]() if protocol in PROTOCOLS else []
    run = next((run for run in runs if run.key == key), None)
    if run is None:
        raise UserError('no protocol has such a run')
    changed = run.changed(protocol, read_json(folder / 'run.json'))
    if changed:
        raise UserError(f'was run with other settings ({", ".join(changed)})')


def keep_log(folder: Path, line: Dict[str, Any]) -> None:
    """Keep the whole log of a run whose weights are shipped."""
    name = f'zoo/{line["protocol"]}/{line["name"]}/seed{line["seed"]}'
    if (RESULTS / f'{name}.json').is_file():
        text = ''.join(json.dumps(step) + '\n' for step in read_log(folder)[0])
        write_bytes(RESULTS / f'{name}.log.jsonl', text.encode())


def collect(root: Path,
            protocol: Optional[str] = None,
            only: Sequence[str] = ('*', )) -> None:
    """Read work folders, add their results and draw their curves.

    Args:
        root: Holds a folder for each protocol.
        protocol: The one to collect; all by default.
        only: Patterns of the runs, ``NAME/seedN``.

    Raises:
        UserError: There is no such folder; or, at the end, a folder could
            not be read.
    """
    if not root.is_dir():
        raise UserError(f'--work-dir {root}: no such folder')
    runs: List[Dict[str, Any]] = []
    ablations: List[Dict[str, Any]] = []
    resolutions: List[Dict[str, Any]] = []
    drawn: Dict[Tuple[str, str], Dict[str, Any]] = {}
    broken = []
    for folder, name, key in _folders(root, protocol, only):
        try:
            check_settings(folder, name, key)
            line = run_line(folder)
            more = resolution_lines(folder)
            curve = run_curve(folder)
            keep_log(folder, line)
        except Exception as error:  # whatever a damaged folder makes of it
            broken.append(f'{folder}: {type(error).__name__}: {error}')
            continue
        ablation = line['name'].startswith('ablations/')
        (ablations if ablation else runs).append(line)
        resolutions += more
        group = line['protocol'], 'ablations' if ablation else line['dataset']
        name = line['name'].partition('/')[2]
        drawn.setdefault(group, {})[f'{name}, seed {line["seed"]}'] = curve
    for name, lines in (('experiments', runs), ('resolution', resolutions),
                        ('ablations/cifar10', ablations)):
        target = RESULTS / f'{name}.jsonl'
        changed = append(target, lines) if lines else 0
        print(f'{target.name}: {changed} lines added or changed')
    curves.update(RESULTS / 'curves', PICTURES, drawn)
    if broken:
        raise UserError(f'{len(broken)} folders were left out: '
                        f'{"; ".join(broken)}')
