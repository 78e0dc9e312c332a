#!/usr/bin/env python
"""Prints how much of the softmax a trained FMA model gives to each distance.

    python tools/analysis_tools/softmax_shares.py CONFIG CHECKPOINT \\
        --batches 10 --out shares.json

For every FMA layer: the mean share of the near field and of each level of
summaries, from the finest, over batches of the test data; beneath it, what
equal logits would give. A layer that has learned to look afar gives the far
levels more than its even share, one that looks close by gives more to the
near field.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch

from fma_vision.engine import UserError, run_tool, trained_runner
from fma_vision.engine.arguments import add_runner_arguments, positive
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.visualization.softmax_shares import Shares, record_shares


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Shares of the softmax by distance, in every FMA layer')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--batches',
        type=positive,
        default=10,
        help='of the test data, from its begin')
    parser.add_argument('--out', type=Path, help='also write this JSON')
    add_runner_arguments(parser)
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> Tuple[Shares, int]:
    """Run a model over the first batches of its test data.

    Args:
        args: From :func:`parse_args`.

    Returns:
        What :func:`~fma_vision.visualization.softmax_shares.record_shares`
        gives, and how many batches there were.

    Raises:
        UserError: The model has no FMA layer that runs, or cannot be run.
    """
    runner = trained_runner(args.config, args.checkpoint, args.device,
                            args.work_dir, args.cfg_options, args.base)
    count = 0
    try:
        with record_shares(runner.model) as shares, torch.no_grad():
            for batch in islice(runner.test_loop.dataloader, args.batches):
                runner.model.test_step(batch)
                count += 1
    except ValueError as error:
        raise UserError(f'{args.config}: {error}') from error
    if not shares:
        raise UserError(f'{args.config}: no FMA layer ran')
    return shares, count


def table(shares: Shares) -> str:
    """Shares in percent as lines of text."""
    depth = max(len(rows['even']) for rows in shares.values())
    width = max(map(len, shares)) + 2
    head = ''.join(f'{f"level {i}":>9}' for i in range(1, depth))
    lines = [f'{"layer":{width}}{"":8}{"near":>9}{head}']
    for name, rows in shares.items():
        for kind, values in rows.items():
            cells = ''.join(f'{value * 100:9.2f}' for value in values)
            title = name if kind == 'learned' else ''
            lines.append(f'{title:{width}}{kind:8}{cells}')
    return '\n'.join(lines)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    shares, count = measure(args)
    print(table(shares))
    if args.out:
        from mmengine.device import get_device
        write_json(
            args.out,
            dict(
                config=args.config,
                checkpoint=args.checkpoint,
                batches=count,
                shares=shares,
                environment=collect_environment(get_device())))


if __name__ == '__main__':
    run_tool(main)
