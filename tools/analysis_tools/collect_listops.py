#!/usr/bin/env python
"""Accuracies on ListOps, side by side.

Each work folder holds what `tools/train.py` logged and what `tools/test.py
--out` wrote::

    python tools/analysis_tools/collect_listops.py \\
        work_dirs/*_listops/test.json

Sizes come from the configuration that was trained, iterations and the curve
from the log; a training that was resumed is read from all of its parts.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

from fma_vision.engine import UserError, run_tool
from fma_vision.utils.complexity import count_parameters
from fma_vision.utils.configs import build_model, load_model_config
from fma_vision.utils.files import write_json
from fma_vision.utils.results import read_log, read_test

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / 'benchmarks/results/listops.json'
METRIC = 'accuracy/top1'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Accuracies of sequence classifiers on ListOps')
    parser.add_argument(
        'tests',
        nargs='+',
        type=Path,
        metavar='TEST.json',
        help='written by tools/test.py --out into the work folder of the '
        'training')
    parser.add_argument('--out', type=Path, default=RESULT)
    return parser.parse_args(argv)


def collect(path: Path) -> Dict[str, Any]:
    """One row: sizes, accuracy and the curve of a model.

    Args:
        path: Its test's result, in the work folder of its training.

    Raises:
        UserError: Something is missing, or it is not the test of a whole
            training on the whole test set.
    """
    test = read_test(path, [METRIC])
    lines, config = read_log(path.parent)
    cfg = load_model_config(str(config))
    dataset = cfg.test_dataloader.dataset
    if not dataset.type.endswith('ListOpsDataset') or dataset.get('samples'):
        raise UserError(f'{path.parent}: the model was not trained for a test '
                        'on all of ListOps')
    net = build_model(cfg).net
    # The last training step: a validation logs the same number.
    iterations = lines[-1]['step']
    if iterations != cfg.train_cfg.max_iters:
        raise UserError(f'{path.parent}: the training stopped at {iterations} '
                        f'of {cfg.train_cfg.max_iters} iterations')
    # A chosen one would have had more looks at the validation set.
    if Path(test['checkpoint']).name != f'iter_{iterations}.pth':
        raise UserError(f'{path} is of {test["checkpoint"]}, not of the last '
                        f'iteration, iter_{iterations}.pth')
    return dict(
        config=test['config'],
        base=test.get('base', []),
        checkpoint=test['checkpoint'],
        attention=type(net.blocks[0].attn).__name__,
        pool_queries=bool(getattr(net.blocks[0].attn, 'pool_queries', False)),
        parameters=count_parameters(net),
        iterations=iterations,
        samples=iterations * cfg.train_dataloader.batch_size,
        seed=cfg.randomness.seed,
        accuracy=test['metrics'][METRIC],
        curve=[
            dict(iterations=line['step'], accuracy=line[METRIC])
            for line in lines if METRIC in line
        ],
        environment=test['environment'])


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    rows = [collect(path) for path in args.tests]
    for row in rows:
        name = ' + '.join(Path(x).stem for x in (row['config'], *row['base']))
        print(f'{name}: {row["parameters"]:,} parameters, '
              f'{row["samples"]:,} samples, {row["accuracy"]:.2f} %')
    write_json(args.out, dict(rows=rows, environment=rows[0]['environment']))


if __name__ == '__main__':
    run_tool(main)
