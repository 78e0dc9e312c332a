#!/usr/bin/env python
"""Attention layers side by side: cost at several sizes, and accuracy.

Without arguments, all layers of ``fma_vision.layers``: parameters,
multiply-adds, time and peak memory in 2D at 56, 128 and 256 tokens a side,
and in 1D at 4k, 16k and 64k tokens::

    python tools/analysis_tools/compare_attention.py --threads 2

Layers by name, with arguments, or of your own, from a config file with
``layers = [dict(type=..., ...), ...]`` (and ``custom_imports``)::

    python tools/analysis_tools/compare_attention.py --shapes 64x64 8192 \\
        --layers FMA FullAttention 'WindowAttention(window_size=8)' mine.py

With a config, the same model is trained with each layer in turn, on the same
data in the same order, and tested::

    python tools/analysis_tools/compare_attention.py --no-cost \\
        --train configs/cifar10/fma-nano_1xb128-60e_cifar10-32px.py --epochs 3

Each layer is checked in float64 before anything is timed; a layer whose
numbers are wrong is named, and so is a size that one would not hold within
``--memory-limit`` and ``--time-limit``, foretold from smaller ones. Layers
that fit take turns in one process. Results go to ``--out`` as JSON, text and
a picture.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from mmengine.config import DictAction

from fma_vision.comparison import (LayerSpec, Limits, Setting, compare_cost,
                                   default_specs, read_specs, runs_on)
from fma_vision.comparison.limits import GIB
from fma_vision.comparison.report import accuracy_table, cost_table, draw_cost
from fma_vision.comparison.training import Budget, compare_accuracy
from fma_vision.engine import UserError, run_tool
from fma_vision.utils.arguments import positive
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_bytes, write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results'
SHAPES = [(56, 56), (128, 128), (256, 256), (4096, ), (16384, ), (65536, )]
# Channels and heads by axes: Swin-T's first stage, and the language model.
SIZES = {2: (96, 3), 1: (256, 8)}
DTYPES = dict(float32='float32', bf16='bfloat16', fp16='float16')


def grid(text: str) -> Tuple[int, ...]:
    """Reads ``56x56`` as a map and ``4096`` as a sequence."""
    sides = text.lower().split('x')
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(
            f'HxW or a number of tokens is allowed, got {text!r}')
    return tuple(positive(side) for side in sides)


def above_zero(text: str) -> float:
    """Reads a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not value > 0:
        raise argparse.ArgumentTypeError(
            f'a positive number is allowed, got {text!r}')
    return value


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Parameters, multiply-adds, time, memory and accuracy of '
        'attention layers')
    parser.add_argument(
        '--shapes',
        type=grid,
        nargs='+',
        metavar='SHAPE',
        help='HxW for 2D, a number of tokens for 1D (default: 56x56 128x128 '
        '256x256 4096 16384 65536)')
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='LAYER',
        help='FMA, FMA-linear, a class, NAME(key=value, ...), or a config '
        'file with `layers` (default: all)')
    parser.add_argument(
        '--dim', type=positive, help='channels (default: 96 in 2D, 256 in 1D)')
    parser.add_argument(
        '--heads', type=positive, help='default: 3 in 2D, 8 in 1D')
    parser.add_argument('--batch', type=positive, default=1)
    parser.add_argument(
        '--causal',
        action='store_true',
        help='the 1D layers in their causal form, where they have one')
    parser.add_argument(
        '--train-step',
        action='store_true',
        help='time forward and backward as well, in training mode')
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        default='float32',
        help='bf16 and fp16 run under autocast (default: float32)')
    parser.add_argument(
        '--device', help='default: cuda where there is one, else cpu')
    parser.add_argument('--threads', type=positive, help='CPU threads')
    parser.add_argument(
        '--repeats',
        type=positive,
        default=7,
        help='samples of each call, three of slow ones (default: 7)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--memory-limit',
        type=above_zero,
        metavar='GiB',
        help='of one call (default: what is free)')
    parser.add_argument(
        '--time-limit',
        type=above_zero,
        default=60,
        metavar='SECONDS',
        help='of one call (default: 60)')
    training = parser.add_argument_group('accuracy after equal training')
    training.add_argument(
        '--train',
        metavar='CONFIG',
        help='train the model of this config with each layer')
    length = training.add_mutually_exclusive_group()
    length.add_argument(
        '--iters', type=positive, help='for a config that counts iterations')
    length.add_argument(
        '--epochs', type=positive, help='for a config that counts epochs')
    training.add_argument(
        '--data-limit',
        type=positive,
        metavar='N',
        help='train on N samples, spread evenly over the data')
    training.add_argument(
        '--test-limit', type=positive, metavar='N', help='test on N samples')
    training.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config')
    training.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/compare_attention'),
        help='folder of the trainings; finished ones are not repeated, '
        'interrupted ones go on (default: work_dirs/compare_attention)')
    training.add_argument(
        '--no-cost',
        action='store_true',
        help='only train; measure neither time nor memory')
    parser.add_argument(
        '--out',
        type=Path,
        default=RESULTS,
        help='folder of the results (default: benchmarks/results)')
    args = parser.parse_args(argv)
    if args.device is None:
        args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.shapes is None:
        args.shapes = [s for s in SHAPES if len(s) == 1 or not args.causal]
    elif args.causal and any(len(s) == 2 for s in args.shapes):
        parser.error('--causal is for sequences; --shapes has maps')
    if args.no_cost and not args.train:
        parser.error('--no-cost leaves nothing to do without --train')
    return args


def setting_for(ndim: int, args: argparse.Namespace) -> Setting:
    """What layers on grids of some axes share."""
    dim, heads = SIZES[ndim]
    return Setting(args.dim or dim, args.heads or heads, args.causal,
                   DTYPES[args.dtype], args.device, args.batch, args.seed)


def specs_for(ndim: int, args: argparse.Namespace) -> List[LayerSpec]:
    """The layers to compare on grids of some axes."""

    def fits(spec: LayerSpec) -> bool:
        if spec.ndim is not None:
            return spec.ndim == ndim
        works = [n for n in SIZES if runs_on(spec, n, setting_for(n, args))]
        # One that runs nowhere is there, with its reason.
        return ndim in (works or SIZES)

    if args.layers is None:
        return default_specs(ndim)
    return [spec for spec in read_specs(args.layers) if fits(spec)]


def cost(ndim: int, args: argparse.Namespace) -> Path:
    """Measures one number of axes and writes the results.

    Args:
        ndim: 1 or 2.
        args: From :func:`parse_args`.

    Returns:
        The JSON written.

    Raises:
        UserError: No layer fits.
    """
    specs = specs_for(ndim, args)
    if not specs:
        raise UserError(f'--layers has none for {ndim}D, --shapes has')
    shapes = [s for s in args.shapes if len(s) == ndim]
    setting = setting_for(ndim, args)
    limits = Limits(
        args.memory_limit and int(args.memory_limit * GIB), args.time_limit)
    modes = ['inference'] + ['training'] * args.train_step
    kind = torch.device(args.device).type
    name = '_'.join(['attention', f'{ndim}d'] + ['causal'] * args.causal +
                    [args.dtype] * (args.dtype != 'float32') + [kind])
    record: Dict[str, Any] = dict(
        environment=collect_environment(args.device, args.seed),
        setting=dict(vars(setting), ndim=ndim, repeats=args.repeats),
        limits=dict(memory_gib=args.memory_limit, seconds=args.time_limit),
        checks={},
        rows=[])

    def report(rows: List[Dict[str, Any]]) -> None:
        print(f'{ndim}D, {rows[0]["mode"]}:\n{cost_table(rows)}', flush=True)
        record['rows'] += rows
        # After each size, so that an end in between loses little.
        write_json(args.out / f'{name}.json', record)

    compare_cost(specs, shapes, setting, limits, modes, args.repeats, report,
                 record['checks'])
    text = '\n\n'.join(
        f'{mode}\n' +
        cost_table([row for row in record['rows'] if row['mode'] == mode])
        for mode in modes)
    write_bytes(args.out / f'{name}.txt', (text + '\n').encode())
    if any(row['status'] == 'measured' for row in record['rows']):
        draw_cost(record['rows'], title(record), args.out / f'{name}.png')
    return args.out / f'{name}.json'


def title(record: Dict[str, Any]) -> str:
    """One line about what was measured, and where."""
    where, setting = record['environment'], record['setting']
    machine = where.get('device_name') or (
        f'{where["cpu"]}, {where["threads"]} threads')
    commit = (where['commit'] or {}).get('hash', 'unknown')[:10]
    form = ', causal' if setting['causal'] else ''
    return (f'One layer, {setting["heads"]} heads, {setting["dim"]} channels'
            f'{form}, batch {setting["batch"]}, {setting["dtype"]}; {machine},'
            f' torch {where["packages"]["torch"]}, commit {commit}')


def accuracy(args: argparse.Namespace) -> Path:
    """Trains a config with each layer and writes the scores.

    Args:
        args: From :func:`parse_args`.

    Returns:
        The JSON written.

    Raises:
        UserError: The config cannot be used.
    """
    budget = Budget(args.iters, args.epochs, args.data_limit, args.test_limit)
    path = args.out / f'attention_accuracy_{Path(args.train).stem}.json'
    record: Dict[str, Any] = dict(
        environment=collect_environment(args.device, args.seed),
        config=args.train,
        cfg_options=args.cfg_options,
        budget=vars(budget),
        rows=[])

    def report(row: Dict[str, Any]) -> None:
        record['rows'].append(row)
        print(accuracy_table([row]), flush=True)
        write_json(path, record)

    compare_accuracy(args.train, args.layers and read_specs(args.layers),
                     budget, args.work_dir, args.seed, args.device,
                     args.cfg_options, report)
    print(accuracy_table(record['rows']))
    return path


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {args.device} cannot be used: {reason}')
    tasks = [] if args.no_cost else [
        functools.partial(cost, ndim, args)
        for ndim in sorted({len(s)
                            for s in args.shapes}, reverse=True)
    ]
    if args.train:
        tasks.append(functools.partial(accuracy, args))
    for task in tasks:
        print(f'wrote {task()}', flush=True)


if __name__ == '__main__':
    run_tool(main)
