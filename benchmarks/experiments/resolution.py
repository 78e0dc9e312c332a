#!/usr/bin/env python
"""Tests a segmentation model on whole images at several resolutions.

    python tools/analysis_tools/benchmark_resolution.py CONFIG CHECKPOINT \\
        --scales 1 2 4 --out work_dirs/RUN/resolution.json

A scale multiplies the size to which the config's test pipeline resizes
images; predictions are compared with the labels at the labels' own size, so
the scores of one model are comparable. Memory and time are of one image in
inference, the first of the set.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from mmengine.config import Config

from fma_vision.engine import (UserError, build_runner, check_checkpoint,
                               check_data, drop_averaging, load_config,
                               prepare, run_tool, select_device, set_work_dir)
from fma_vision.utils.arguments import add_runner_arguments, positive_number
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import peak_memory, summarise, time_interleaved

REPEATS = 5


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='mIoU, memory and time of whole images at several sizes')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--scales',
        type=positive_number,
        nargs='+',
        default=[1., 2., 4.],
        metavar='S',
        help='multiples of the size in the config (default: 1 2 4)')
    parser.add_argument('--out', type=Path, help='also write this JSON')
    add_runner_arguments(parser)
    return parser.parse_args(argv)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or on a CPU."""
    # torch.OutOfMemoryError came with 2.5; the CPU's has no type of its own.
    return (isinstance(error, torch.cuda.OutOfMemoryError)
            or 'DefaultCPUAllocator' in str(error))


def enlarge(cfg: Config, scale: float) -> Config:
    """A copy of a config that tests at another size.

    Args:
        cfg: A segmentation config.
        scale: Of height and width.

    Returns:
        The copy.

    Raises:
        UserError: Images are not tested whole, or at no size of its own.
    """
    cfg = copy.deepcopy(cfg)
    mode = cfg.model.get('test_cfg', {}).get('mode')
    if mode != 'whole':
        raise UserError("needs model.test_cfg.mode='whole', the config has "
                        f'{mode!r}')
    steps = [
        step for step in cfg.test_dataloader.dataset.pipeline
        if step.type == 'Resize' and 'scale' in step
    ]
    if len(steps) != 1:
        raise UserError('needs one Resize with a scale in the test pipeline, '
                        f'found {len(steps)}')
    steps[0].scale = tuple(round(side * scale) for side in steps[0].scale)
    return cfg


def measure(cfg: Config, checkpoint: str) -> Dict[str, Any]:
    """Test one model at one size.

    Args:
        cfg: From :func:`enlarge`.
        checkpoint: The weights.

    Returns:
        The scores in percent, and the shape, time and memory of an image.
    """
    runner = build_runner(cfg)
    check_checkpoint(runner.model, checkpoint)
    check_data(runner, 'test', checkpoint)
    metrics = runner.test()
    device = next(runner.model.parameters()).device
    batch = next(iter(runner.test_dataloader))

    @torch.no_grad()
    def call() -> object:
        return runner.model.test_step(batch)

    seconds = time_interleaved({'model': call}, device, REPEATS, 1)['model']
    return dict(
        shape=list(batch['inputs'][0].shape[-2:]),
        mIoU=round(float(metrics['mIoU']), 4),
        aAcc=round(float(metrics['aAcc']), 4),
        seconds=summarise(seconds),
        peak_memory_bytes=peak_memory(call, device))


def benchmark(args: argparse.Namespace) -> Dict[str, Any]:
    """Test a model at all sizes.

    Args:
        args: From :func:`parse_args`.

    Returns:
        ``rows``, one a scale, with ``reason`` instead of numbers where a
        size does not fit into memory; the environment.
    """
    select_device(args.device)
    given = load_config(args.config, args.cfg_options)
    set_work_dir(given, args.config, args.work_dir)
    given.load_from = args.checkpoint
    drop_averaging(given)
    rows: List[Dict[str, Any]] = []
    for scale in args.scales:
        cfg = enlarge(given, scale)
        # Runners are told apart by their names.
        cfg.experiment_name = f'{Path(args.config).stem}_{scale:g}x'
        prepare(cfg, ('test_dataloader', ))
        row: Dict[str, Any] = dict(scale=scale)
        try:
            row.update(measure(cfg, args.checkpoint))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            row['reason'] = f'out of memory: {str(error).splitlines()[0]}'
            torch.cuda.empty_cache()
        rows.append(row)
    from mmengine.device import get_device
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        rows=rows,
        environment=collect_environment(get_device()))


def table(rows: List[Dict[str, Any]]) -> str:
    """Results as lines of text."""
    lines = [f'{"scale":>5}{"image":>12}{"mIoU":>8}{"ms":>10}{"peak MiB":>10}']
    for row in rows:
        if 'reason' in row:
            lines.append(f'{row["scale"]:>5g}  {row["reason"]}')
            continue
        size = 'x'.join(map(str, row['shape']))
        lines.append(f'{row["scale"]:>5g}{size:>12}{row["mIoU"]:>8.2f}'
                     f'{row["seconds"]["median"] * 1e3:>10.1f}'
                     f'{row["peak_memory_bytes"] / 2**20:>10.1f}')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    record = benchmark(args)
    print(table(record['rows']))
    if args.out:
        write_json(args.out, record)


if __name__ == '__main__':
    run_tool(main)
