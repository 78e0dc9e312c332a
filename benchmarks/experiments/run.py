#!/usr/bin/env python
"""Trains and tests several attentions alike, and collects the results.

    python benchmarks/experiments/run.py --protocol full --list
    python benchmarks/experiments/run.py --protocol full --only 'camvid/*'
    python benchmarks/experiments/run.py --protocol reduced --device cpu
    python benchmarks/experiments/run.py --protocol reduced collect
    python benchmarks/tables.py

What is done already is not done again, and an interrupted run goes on from
its checkpoint: the same command may be given any number of times, by one
process at a time. Each run has a folder
`work_dirs/experiments/PROTOCOL/NAME/seedN` with the logs, the last checkpoint
and its tests. See docs/experiments.md.
"""
import argparse
import fnmatch
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import collect
from protocol import FILES, Run, read

from fma_vision.engine import (UserError, latest_checkpoint, load_config,
                               run_tool)
from fma_vision.engine.arguments import add_device, positive_number
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json

ROOT = Path(__file__).resolve().parents[2]
# Below this many minutes nothing is worth the start.
LEAST_MINUTES = 1.


def select(protocol: str, patterns: Sequence[str]) -> List[Run]:
    """The runs of a protocol that match one of the patterns."""
    runs, found = read(protocol), set()
    for pattern in patterns:
        keys = fnmatch.filter([run.key for run in runs], pattern)
        if not keys:
            raise UserError(f'--only {pattern!r} matches no run of protocol '
                            f'{protocol}; --list shows them')
        found.update(keys)
    return [run for run in runs if run.key in found]


class Place:
    """The folder of a run under that of all, and what state it is in."""

    def __init__(self, root: Path, protocol: str, run: Run) -> None:
        self.root, self.protocol, self.run = root, protocol, run
        self.folder = root / protocol / run.key

    @property
    def checkpoint(self) -> Optional[Path]:
        """The last checkpoint, wherever the folder has moved."""
        return latest_checkpoint(self.folder)

    @property
    def trained(self) -> bool:
        """Whether the last checkpoint is that of the last step."""
        from mmengine.config import Config
        configs = sorted(self.folder.glob('*/vis_data/config.py'))
        if not self.checkpoint or not configs:
            return False
        loop = Config.fromfile(configs[-1]).train_cfg
        # `epoch_60.pth` or `iter_8000.pth`
        last = loop.get('max_epochs') or loop.get('max_iters')
        return int(self.checkpoint.stem.rpartition('_')[2]) == last

    def tests(self) -> Dict[int, Path]:
        """The files of the tests, by the multiple of the config's size."""
        scales = self.run.scales or (1, )
        names = [f'test_{x}x.json' if x > 1 else 'test.json' for x in scales]
        return {x: self.folder / name for x, name in zip(scales, names)}

    def check(self) -> Dict[str, Any]:
        """The folder's note, which must be of this run."""
        path = self.folder / 'run.json'
        note = collect.read_json(path) if path.is_file() else {}
        changed = note and self.run.changed(self.protocol, note)
        if changed:
            raise UserError(f'{self.folder} was begun with other settings '
                            f'({", ".join(changed)}); move it away')
        return note

    def state(self) -> str:
        """'done', 'trained', 'begun', 'missing', or 'other settings'."""
        try:
            self.check()
        except UserError:
            return 'other settings'
        if self.trained:
            done = all(path.is_file() for path in self.tests().values())
            return 'done' if done else 'trained'
        return 'begun' if self.checkpoint else 'missing'


def option_list(options: Mapping[str, Any]) -> List[str]:
    """Options as ``--cfg-options`` takes them."""
    pairs = [f'{k}={value}'.replace(' ', '') for k, value in options.items()]
    return ['--cfg-options', *pairs] if pairs else []


def start_options(place: Place) -> Dict[str, Any]:
    """Options that load the backbone of the run to start from."""
    run = place.run
    if run.start is None:
        return {}
    key = f'{run.start}/seed{run.seed}'
    other = Place(place.root, place.protocol, *select(place.protocol, [key]))
    if not other.trained:
        raise UserError(f'starts from {key}, which is not trained')
    init = 'model.backbone.init_cfg'
    return {
        f'{init}.type': 'Pretrained',
        f'{init}.checkpoint': other.checkpoint.as_posix(),
        f'{init}.prefix': 'backbone.'
    }


def train_command(place: Place, minutes: Optional[float]) -> List[str]:
    """The command that trains a run, or goes on with it."""
    run, found = place.run, place.checkpoint
    options = {'randomness.seed': run.seed, **run.options}
    options |= run.train_options | start_options(place)
    return [
        'tools/train.py', *run.model, '--work-dir',
        place.folder.as_posix(), *(['--amp'] if run.amp else []),
        *(['--resume', found.as_posix()] if found else []),
        *(['--time-limit', f'{minutes:.2f}'] if minutes else []),
        *option_list(options)
    ]


def larger(config: str, scale: int) -> Dict[str, Any]:
    """Options that test whole images at a multiple of a config's size."""
    if scale == 1:
        return {}
    pipeline = load_config(config).test_dataloader.dataset.pipeline
    found = [i for i, step in enumerate(pipeline) if 'scale' in step]
    if len(found) != 1:
        raise UserError(f'{config}: a test pipeline with one `scale` is '
                        f'allowed, got {len(found)}')
    width, height = pipeline[found[0]].scale
    key = f'test_dataloader.dataset.pipeline.{found[0]}.scale'
    return {key: (width * scale, height * scale)}


def test_commands(place: Place) -> List[List[str]]:
    """The commands that test what a run has trained, done ones left out."""
    run, commands = place.run, []
    for scale, path in place.tests().items():
        if not path.is_file():
            commands.append([
                'tools/test.py', *run.model,
                place.checkpoint.as_posix(), '--work-dir',
                path.with_suffix('').as_posix(), '--out',
                path.as_posix(),
                *option_list(run.options | larger(run.config, scale))
            ])
    return commands


def call(command: List[str], device: Optional[str]) -> None:
    """Run a tool in the checkout."""
    tool, *rest = command
    # Options of the config take all that follows.
    given = ['--device', device] if device else []
    code = subprocess.run([sys.executable, tool, *given, *rest],
                          cwd=ROOT).returncode
    if code:
        raise UserError(f'{tool} ended with status {code}')


def finish(place: Place, device: Optional[str],
           minutes: Optional[float]) -> bool:
    """Train and test a run as far as the time allows; whether it is done."""
    note = place.check()
    if not note:
        # Where and with what a training began is kept.
        from mmengine.device import get_device
        note['environment'] = collect_environment(device or get_device())
    write_json(place.folder / 'run.json',
               note | place.run.note(place.protocol))
    if not place.trained:
        call(train_command(place, minutes), device)
        if not place.trained:
            return False
    for command in test_commands(place):
        call(command, device)
    return True


def run_all(places: List[Place], device: Optional[str],
            time_limit: Optional[float]) -> None:
    """Do what is missing, one run after the other; at the end, what failed."""
    started, failed, done, left = time.time(), [], 0, None
    for place in places:
        key = place.run.key
        try:
            state = place.state()
            if time_limit is not None:
                left = time_limit - (time.time() - started) / 60
            if state == 'done':
                done += 1
            elif left is None or left >= LEAST_MINUTES:
                print(f'== {key} ({state})', flush=True)
                done += finish(place, device, left)
        except Exception as error:  # whatever a damaged folder makes of it
            print(f'== {key} failed: {error}', flush=True)
            failed.append(f'{key}: {error}')
    print(f'{done} of {len(places)} runs are done')
    if failed:
        raise UserError(f'{len(failed)} runs failed: {"; ".join(failed)}')


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'action', nargs='?', default='run', choices=('run', 'collect'))
    parser.add_argument('--protocol', choices=sorted(FILES), default='full')
    parser.add_argument(
        '--only',
        nargs='+',
        default=['*'],
        metavar='PATTERN',
        help="runs by NAME/seedN, such as 'camvid/*' or '*/seed0'")
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/experiments'),
        help='of all runs; from the checkout, not from where you are')
    add_device(parser)
    parser.add_argument(
        '--time-limit',
        type=positive_number,
        metavar='MINUTES',
        help='stop a training after so long, and start nothing more')
    parser.add_argument(
        '--list', action='store_true', help='print the runs and their state')
    args = parser.parse_args(argv)
    if ' ' in str(args.work_dir):
        # It holds weights to start from, and mmengine drops spaces.
        raise UserError(f'--work-dir {args.work_dir}: a path without spaces '
                        'is allowed')
    # Configs and what they name are found from here.
    os.chdir(ROOT)
    runs = select(args.protocol, args.only)
    places = [Place(args.work_dir, args.protocol, run) for run in runs]
    if args.list:
        for place in places:
            print(f'{place.state():8} {place.run.key:44} '
                  f'{" ".join(place.run.model)}')
    elif args.action == 'collect':
        collect.collect(places)
    else:
        run_all(places, args.device, args.time_limit)


if __name__ == '__main__':
    run_tool(main)
