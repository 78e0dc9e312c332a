#!/usr/bin/env python
"""Runs the experiments, packs data for another machine, collects results.

    python tools/experiments/run.py --protocol full --list
    python tools/experiments/run.py --protocol full --only 'camvid/*/seed0'
    python tools/experiments/run.py --protocol reduced --device cpu
    python tools/experiments/run.py pack data.tar.xz --only 'cifar10/*'
    python tools/experiments/run.py collect

What is done already is not done again, and an interrupted run goes on from
its checkpoint: the same command may be given any number of times. Each run
has a folder `work_dirs/experiments/PROTOCOL/NAME/seedN` with the logs, the
last checkpoint and `test.json`. See docs/experiments.md.
"""

import argparse
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from fma_vision.engine import UserError, read_checkpoint, run_tool
from fma_vision.utils.arguments import add_device, positive_number
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import whole_file, write_json
from fma_vision.utils.results import read_json

import archive  # isort: skip
import collect  # isort: skip
from protocol import PROTOCOLS, Run  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
WORK = Path('work_dirs/experiments')
# Below this many minutes nothing is worth the start.
LEAST_MINUTES = 1.


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train, test and collect the experiments')
    parser.add_argument(
        'action',
        nargs='?',
        default='run',
        choices=('run', 'pack', 'collect'),
        help='what to do (default: run what is missing)')
    parser.add_argument(
        'archive',
        nargs='?',
        type=Path,
        help='pack: file to write, .tar or .tar.xz')
    parser.add_argument(
        '--protocol',
        choices=sorted(PROTOCOLS),
        help='default: full; collect: all')
    parser.add_argument(
        '--only',
        nargs='+',
        default=['*'],
        metavar='PATTERN',
        help="runs by NAME/seedN, such as 'camvid/*' or '*/seed0'")
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=WORK,
        help='of all runs; from the checkout, not from where you are')
    add_device(parser)
    parser.add_argument(
        '--time-limit',
        type=positive_number,
        metavar='MINUTES',
        help='stop a training after so long, and start nothing more')
    parser.add_argument(
        '--list', action='store_true', help='print the runs and their state')
    parser.add_argument(
        '--dry-run', action='store_true', help='print the commands only')
    parser.add_argument(
        '--max-size',
        type=positive_number,
        default=60.,
        metavar='MB',
        help='pack: begin another archive before this size')
    parser.add_argument(
        '--no-data',
        action='store_true',
        help='pack: work folders only, to bring results back')
    args = parser.parse_args(argv)
    if (args.action == 'pack') != (args.archive is not None):
        parser.error('pack takes the archive to write; nothing else does')
    return args


def select(protocol: str, patterns: Sequence[str]) -> List[Run]:
    """The runs of a protocol that match one of the patterns.

    Raises:
        UserError: A pattern matches none.
    """
    runs = PROTOCOLS[protocol]()
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(run.key, pattern) for run in runs):
            raise UserError(f'--only {pattern!r} matches no run of protocol '
                            f'{protocol}; --list shows them')
    return [
        run for run in runs if any(
            fnmatch.fnmatchcase(run.key, pattern) for pattern in patterns)
    ]


class Workplace:
    """The folders of a protocol's runs, and what state they are in.

    Args:
        root: Of all work folders.
        protocol: Name of the protocol.
    """

    def __init__(self, root: Path, protocol: str) -> None:
        self.protocol = protocol
        self.root = root / protocol

    def folder(self, run: Run) -> Path:
        """Where a run works."""
        return self.root / run.key

    def checkpoint(self, run: Run) -> Optional[Path]:
        """The last checkpoint of a run, wherever the folder has moved."""
        note = self.folder(run) / 'last_checkpoint'
        if not note.is_file():
            return None
        # The note names the place on the machine that wrote it.
        text = note.read_text(errors='replace')
        path = note.parent / Path(text.strip()).name
        return path if path.is_file() else None

    def trained(self, run: Run) -> bool:
        """Whether the training came to its end."""
        return (self.folder(run) / 'trained').is_file()

    def changed(self, run: Run) -> List[str]:
        """The settings in which a folder that has begun is of another run.

        Raises:
            UserError: The folder's note is damaged.
        """
        path = self.folder(run) / 'run.json'
        if not path.is_file():
            return []
        return run.changed(self.protocol, read_json(path))

    def check(self, run: Run) -> None:
        """See that a folder that has begun is of this run.

        Raises:
            UserError: Something else was trained there, or the folder's note
                is damaged.
        """
        changed = self.changed(run)
        if changed:
            raise UserError(f'{self.folder(run)} was begun with other settings'
                            f' ({", ".join(changed)}); move it away')

    def state(self, run: Run) -> str:
        """'done', 'trained', 'begun', 'missing', or 'other settings'.

        Raises:
            UserError: The folder's note is damaged.
        """
        if self.changed(run):
            return 'other settings'
        if self.trained(run):
            return 'trained' if self.missing(run) else 'done'
        return 'begun' if self.checkpoint(run) else 'missing'

    def results(self, run: Run) -> List[Path]:
        """The files that a finished run has."""
        names = ['test.json'] + ['resolution.json'] * bool(run.scales)
        return [self.folder(run) / name for name in names]

    def missing(self, run: Run) -> List[Path]:
        """Those of :meth:`results` that are not there, or are damaged."""
        return [path for path in self.results(run) if not _can_be_read(path)]


def _can_be_read(path: Path) -> bool:
    try:
        read_json(path)
    except UserError:
        return False
    return True


def with_starts(runs: Sequence[Run], protocol: str) -> List[Run]:
    """Runs, and those that they start from, each once."""
    starts = {(run.start, run.seed) for run in runs}
    return [
        run for run in PROTOCOLS[protocol]()
        if run in runs or (run.name, run.seed) in starts
    ]


def option_list(options: Mapping[str, Any]) -> List[str]:
    """Options as ``--cfg-options`` takes them."""
    pairs = [
        f'{key}={value}'.replace(' ', '') for key, value in options.items()
    ]
    return ['--cfg-options', *pairs] if pairs else []


def start_options(run: Run, place: Workplace) -> Dict[str, Any]:
    """Options that load the backbone of the run to start from.

    Raises:
        UserError: That run is not trained.
    """
    if run.start is None:
        return {}
    other = next((r for r in PROTOCOLS[place.protocol]()
                  if (r.name, r.seed) == (run.start, run.seed)), None)
    weights = other and place.checkpoint(other)
    if not weights or not place.trained(other):
        raise UserError(f'starts from {run.start}/seed{run.seed}, which is '
                        'not trained')
    return {
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.backbone.init_cfg.checkpoint': weights.as_posix(),
        'model.backbone.init_cfg.prefix': 'backbone.',
    }


def train_command(run: Run, place: Workplace, device: Optional[str],
                  minutes: Optional[float]) -> List[str]:
    """The command that trains a run, or goes on with it."""
    folder = place.folder(run)
    command = [
        sys.executable, 'tools/train.py', run.config, '--work-dir',
        folder.as_posix()
    ]
    found = place.checkpoint(run)
    if found:
        command += ['--resume', found.as_posix()]
    if run.amp:
        command += ['--amp']
    if device:
        command += ['--device', device]
    if minutes is not None:
        command += ['--time-limit', f'{minutes:.2f}']
    return command + option_list({
        'randomness.seed': run.seed,
        **run.options,
        **run.train_options,
        **start_options(run, place)
    })


def test_commands(run: Run, place: Workplace,
                  device: Optional[str]) -> List[List[str]]:
    """The commands that test what a run has trained, what is there left out.

    Raises:
        UserError: The weights are gone.
    """
    missing, checkpoint = place.missing(run), place.checkpoint(run)
    if missing and place.trained(run) and not checkpoint:
        raise UserError(f'{place.folder(run)} is trained, but its checkpoint '
                        'is gone')
    on = ['--device', device] if device else []
    options = on + option_list(run.options)
    result, *more = place.results(run)
    weights = checkpoint.as_posix() if checkpoint else 'CHECKPOINT'
    commands = []
    if result in missing:
        commands.append([
            sys.executable, 'tools/test.py', run.config, weights, '--work-dir',
            (result.parent / 'test').as_posix(), '--out',
            result.as_posix(), *options
        ])
    for path in more:
        if path in missing:
            commands.append([
                sys.executable, 'tools/analysis_tools/benchmark_resolution.py',
                run.config, weights, '--scales', *map(str, run.scales),
                '--work-dir', (path.parent / 'resolution').as_posix(), '--out',
                path.as_posix(), *options
            ])
    return commands


def has_ended(run: Run, place: Workplace) -> bool:
    """Whether the last checkpoint is that of the last step."""
    from mmengine.config import Config
    folder, found = place.folder(run), place.checkpoint(run)
    configs = sorted(folder.glob('*/vis_data/config.py'))
    if not found or not configs:
        return False
    loop = Config.fromfile(configs[-1]).train_cfg
    # `epoch_60.pth` or `iter_8000.pth`
    last = loop.get('max_epochs') or loop.get('max_iters')
    return int(found.stem.rpartition('_')[2]) == last


def slim(path: Path) -> None:
    """Drop what only a resumed training needs, two thirds of the file.

    Older checkpoints beside it go, too.
    """
    for other in path.parent.glob('*.pth'):
        if other != path:
            other.unlink()
    content = read_checkpoint(str(path))
    kept = {key: content[key] for key in ('meta', 'state_dict')}
    with whole_file(path) as file:
        torch.save(kept, file)


def claim(run: Run, place: Workplace, device: Optional[str]) -> None:
    """Write down what the folder is of, or see that it is of this run.

    Where and with what a training began is kept, too.

    Args:
        run, place: Of the folder.
        device: That was asked for.

    Raises:
        UserError: Something else was trained there, or the note is damaged.
    """
    place.check(run)
    path, note = place.folder(run) / 'run.json', run.note(place.protocol)
    if path.is_file():
        # The scales may be others now.
        note = {**read_json(path), **note}
    else:
        from mmengine.device import get_device
        note['environment'] = collect_environment(device or get_device())
    write_json(path, note)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from a work folder.

    The commands called meanwhile hold on to the lock as well, so that a
    training that outlives this process is not joined by a second one.

    Raises:
        UserError: Another process is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as file:
        if fcntl is not None:
            os.set_inheritable(file.fileno(), True)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError('another process works on it')
        yield


def finish(run: Run, place: Workplace, args: argparse.Namespace,
           minutes: Optional[float]) -> bool:
    """Train and test a run as far as the time allows.

    Returns:
        bool: Whether it is done.

    Raises:
        UserError: A command failed, or the run cannot start.
    """
    claim(run, place, args.device)
    if not place.trained(run):
        call(train_command(run, place, args.device, minutes))
        if not has_ended(run, place):
            return False
        # In this order: a training cannot go on from a slim checkpoint.
        (place.folder(run) / 'trained').touch()
        slim(place.checkpoint(run))
    for command in test_commands(run, place, args.device):
        call(command)
    return True


def call(command: List[str]) -> None:
    """Run a command in the checkout.

    Raises:
        UserError: It failed.
    """
    # For the lock of the work folder; Python opens other files for itself.
    code = subprocess.run(command, cwd=ROOT, close_fds=False).returncode
    if code:
        raise UserError(f'{command[1]} ended with status {code}')


def run_all(runs: List[Run], place: Workplace,
            args: argparse.Namespace) -> None:
    """Do what is missing, one run after the other.

    Raises:
        UserError: At the end, if a run failed; names each and why.
    """
    started, failed, done = time.time(), [], 0
    left, in_time = None, True
    for run in runs:
        try:
            state = place.state(run)
            if state == 'done':
                done += 1
                continue
            if args.time_limit is not None:
                left = args.time_limit - (time.time() - started) / 60
                if left < LEAST_MINUTES:
                    if in_time:
                        print(f'The time is up before {run.key}')
                    in_time = False
                    continue
            print(f'== {run.key} ({state})', flush=True)
            with alone(place.folder(run)):
                done += finish(run, place, args, left)
        except Exception as error:  # whatever a damaged folder makes of it
            print(f'== {run.key} failed: {error}', flush=True)
            failed.append(f'{run.key}: {error}')
    print(f'{done} of {len(runs)} runs are done')
    if failed:
        raise UserError(f'{len(failed)} runs failed: {"; ".join(failed)}')


def table(runs: List[Run], place: Workplace) -> str:
    """The runs as lines of text."""
    lines = []
    for run in runs:
        options = {**run.options, **run.train_options}
        extra = [f'{k}={v}' for k, v in run.options.items()]
        if run.start:
            extra.append(f'from {run.start}')
        if 'train_cfg.max_iters' in options:
            extra.append(f'{options["train_cfg.max_iters"]} iterations')
        try:
            state = place.state(run)
        except UserError:
            state = 'damaged'
        lines.append(f'{state:8} {run.key:44} '
                     f'{Path(run.config).stem} {" ".join(extra)}'.rstrip())
    return '\n'.join(lines)


def dry_run(runs: List[Run], place: Workplace,
            args: argparse.Namespace) -> None:
    """Print what would be called."""
    for run in runs:
        commands = []
        try:
            place.check(run)
            if not place.trained(run):
                commands.append(
                    train_command(run, place, args.device, args.time_limit))
            commands += test_commands(run, place, args.device)
        except UserError as error:
            print(f'# {run.key}: {error}')
            continue
        for command in commands:
            print(shlex.join(['python', *command[1:]]))


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    if args.archive is not None:
        args.archive = args.archive.absolute()
    if ' ' in str(args.work_dir):
        # It holds weights to start from, and mmengine drops spaces.
        raise UserError(f'--work-dir {args.work_dir}: a path without spaces '
                        'is allowed')
    # Configs and what they name are found from here.
    os.chdir(ROOT)
    if args.action == 'collect':
        collect.collect(args.work_dir, args.protocol, args.only)
        return
    protocol = args.protocol or 'full'
    runs = select(protocol, args.only)
    place = Workplace(args.work_dir, protocol)
    if args.action == 'pack':
        archive.pack(
            args.archive,
            runs, {
                folder: WORK / folder.relative_to(args.work_dir)
                for folder in map(place.folder, with_starts(runs, protocol))
            },
            args.max_size,
            data=not args.no_data)
    elif args.list:
        print(table(runs, place))
    elif args.dry_run:
        dry_run(runs, place, args)
    else:
        run_all(runs, place, args)


if __name__ == '__main__':
    # Ends the command that is running, too, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('terminated'))
    run_tool(main)
