"""What trainings and tests left in their folders, and the results from it."""
import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fma_vision.engine import UserError
from fma_vision.engine.build import input_shape, load_model_config, measure
from fma_vision.engine.files import write_bytes

RESULTS = Path(__file__).resolve().parents[1] / 'results'
# What tests call it, and what the results do.
METRICS = {'accuracy/top1': 'top1', 'mIoU': 'mIoU', 'bpc': 'bpc'}
# Options that a protocol gives to all its trainings.
COMMON = ('default_hooks.', 'optim_wrapper.dtype',
          'train_dataloader.num_workers')


def read_json(path: Path) -> Dict[str, Any]:
    """A file of one JSON object."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if not isinstance(found, dict):
        raise UserError(f'{path} is no object: {str(found)[:40]}')
    return found


def read_part(log: Path) -> Dict[Tuple[bool, int], Dict[str, Any]]:
    """The lines of one part of a training, by kind and step.

    A part that was killed may end within a line; what is before it counts.
    """
    lines, found = log.read_bytes().splitlines(), {}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            found['loss' in line, line['step']] = line
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise UserError(f'{log}, line {number} cannot be read: '
                                f'{error}') from error
    return found


def read_log(folder: Path) -> Tuple[List[Dict[str, Any]], Path]:
    """What a training logged, all its parts in order.

    One line at most for each step of training (they hold ``loss``) and of
    validation, whose steps are epochs where the training counts epochs; and
    the configuration of the last part.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    lines: Dict[Tuple[bool, int], Dict[str, Any]] = {}
    for part in map(read_part, logs):
        # What came after the start of this part was done again.
        first = {kind: step for kind, step in sorted(part, reverse=True)}
        lines = {
            (kind, step): line
            for (kind, step), line in lines.items()
            if step < first.get(kind, step + 1)
        }
        lines.update(part)
    if not lines:
        raise UserError(f'{folder} holds no log of a training '
                        '(*/vis_data/scalars.json)')
    ordered = sorted(lines, key=lambda key: key[::-1])
    return [lines[key] for key in ordered], logs[-1].parent / 'config.py'


def median(lines: List[dict], key: str) -> Optional[float]:
    """Median of what the training logged, None where it did not."""
    values = [line[key] for line in lines if key in line]
    return statistics.median(values) if values else None


def score(path: Path) -> Tuple[str, float]:
    """The metric of a test, and its value."""
    metrics = read_json(path).get('metrics', {})
    for name, short in METRICS.items():
        if name in metrics:
            return short, metrics[name]
    raise UserError(f'{path} has none of {list(METRICS)}')


def run_line(place: Any) -> Dict[str, Any]:
    """The result of the run of a ``run.Place``."""
    note, tests = place.check(), place.tests()
    metric, value = score(tests[1])
    lines, config = read_log(place.folder)
    cfg = load_model_config(str(config))
    steps = [line for line in lines if 'loss' in line]
    if not place.trained or not steps:
        raise UserError(f'{place.folder}: the training has not ended')
    shape = input_shape(cfg)
    cost = measure(cfg, shape)['model']
    batch, loop = cfg.train_dataloader.batch_size, cfg.train_cfg
    seconds = median(steps, 'time')
    rate = batch / seconds if seconds else None
    # Much less noisy than a score: layers see the same images in one order.
    last = [line['loss'] for line in steps[len(steps) * 3 // 4:]]
    # Loaders and loops do not make another model, but another training.
    given = note['options'] | note['train_options']
    model = {k: x for k, x in given.items() if k.startswith('model.')}
    training = {
        k: x
        for k, x in given.items() if not k.startswith(('model.', *COMMON))
    }
    kept = ('protocol', 'name', 'dataset', 'attention', 'config', 'base',
            'start', 'seed', 'amp')
    sizes = {x: score(path)[1] for x, path in tests.items()}
    machine = note['environment']
    commit = machine.get('commit') or {}
    return dict(
        {k: note[k]
         for k in kept},
        options=model,
        training=training,
        parameters=cost.parameters,
        macs=cost.macs,
        shape=list(shape),
        epochs=loop.get('max_epochs'),
        iterations=loop.get('max_iters') or steps[-1]['step'],
        batch_size=batch,
        metric=metric,
        value=value,
        sizes=sizes if len(sizes) > 1 else None,
        training_loss=round(statistics.mean(last), 4),
        # Images or texts.
        samples_per_second=rate,
        # Only CUDA's allocator is asked, in MiB.
        training_memory=median(steps, 'memory'),
        device=machine.get('device_name') or machine['cpu'],
        threads=machine['threads'],
        versions=machine['packages'],
        commit=commit.get('hash'),
        modified=commit.get('modified'),
        date=machine['date'])


def append(path: Path, lines: List[Dict[str, Any]]) -> int:
    """Add lines to a file of one JSON object a line, each run once.

    Returns how many are new or other than before.
    """

    def key(line: Dict[str, Any]) -> Tuple:
        return tuple(line[name] for name in ('protocol', 'name', 'seed'))

    old = path.read_text(encoding='utf-8') if path.is_file() else ''
    known = {key(x): x for x in map(json.loads, old.splitlines())}
    # Keys of JSON are texts.
    lines = json.loads(json.dumps(lines))
    changed = sum(known.get(key(line)) != line for line in lines)
    known.update((key(line), line) for line in lines)
    if changed:
        text = ''.join(json.dumps(line) + '\n' for line in known.values())
        write_bytes(path, text.encode())
    return changed


def collect(places: Sequence[Any]) -> None:
    """Add the results of finished runs to those that are kept."""
    found, broken = [], []
    for place in places:
        if not all(path.is_file() for path in place.tests().values()):
            continue
        try:
            found.append(run_line(place))
        except Exception as error:  # whatever a damaged folder makes of it
            broken.append(f'{place.folder}: {type(error).__name__}: {error}')
            continue
        kept = RESULTS / f'zoo/{place.protocol}/{place.run.key}.json'
        if kept.is_file():
            # Weights that are shipped have their whole log beside them.
            text = ''.join(
                json.dumps(x) + '\n' for x in read_log(place.folder)[0])
            write_bytes(kept.with_suffix('.log.jsonl'), text.encode())
    changed = append(RESULTS / 'experiments.jsonl', found)
    print(f'experiments.jsonl: {changed} lines added or changed')
    if broken:
        raise UserError(f'{len(broken)} folders were left out: '
                        f'{"; ".join(broken)}')
