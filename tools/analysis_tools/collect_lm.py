#!/usr/bin/env python
"""Scores and validation curves of language models, side by side.

Each work folder holds what `tools/train.py` logged and what `tools/test.py
--out` wrote::

    python tools/analysis_tools/collect_lm.py \\
        work_dirs/fma-lm-nano_1xb2-3k_books-1k/test.json \\
        work_dirs/full-lm-nano_1xb2-3k_books-1k/test.json

Sizes come from the configuration that was trained, iterations and the curve
from the log; a training that was resumed is read from all of its parts.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import matplotlib
from mmengine.config import Config

from fma_vision.engine import run_tool
from fma_vision.utils.complexity import count_parameters
from fma_vision.utils.configs import build_model, load_model_config
from fma_vision.utils.files import write_json
from fma_vision.utils.results import read_log, read_test

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / 'benchmarks/results/books_lm.json'
PICTURE = ROOT / 'docs/assets/books_lm.png'
METRICS = ('bpc', 'nats', 'perplexity')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Scores and validation curves of trained language models')
    parser.add_argument(
        'tests',
        nargs='+',
        type=Path,
        metavar='TEST.json',
        help='written by tools/test.py --out into the work folder of the '
        'training')
    parser.add_argument('--out', type=Path, default=RESULT)
    parser.add_argument('--plot', type=Path, default=PICTURE)
    return parser.parse_args(argv)


def tokens_per_iteration(cfg: Config) -> int:
    """Tokens that one training iteration reads on one device."""
    loader = cfg.train_dataloader
    return loader.batch_size * loader.dataset.length


def collect(path: Path) -> Dict[str, Any]:
    """One row: sizes, scores and the curve of a model.

    Args:
        path: Its test's result, in the work folder of its training.

    Raises:
        UserError: Something is missing.
    """
    test = read_test(path, METRICS)
    lines, config = read_log(path.parent)
    cfg = load_model_config(str(config))
    net = build_model(cfg).net
    iterations = lines[-1]['step']
    each = tokens_per_iteration(cfg)
    return dict(
        config=test['config'],
        base=test.get('base', []),
        attention=type(net.blocks[0].attn).__name__,
        parameters=count_parameters(net),
        iterations=iterations,
        tokens=iterations * each,
        **{name: test['metrics'][name]
           for name in METRICS},
        curve=[
            dict(
                iterations=line['step'],
                tokens=line['step'] * each,
                bpc=line['bpc']) for line in lines if 'bpc' in line
        ],
        environment=test['environment'])


def name_of(row: Dict[str, Any]) -> str:
    """The config of a row, and what was merged into it."""
    return ' + '.join(Path(x).stem for x in (row['config'], *row['base']))


def draw(rows: List[Dict[str, Any]], path: Path) -> None:
    """Validation bits per character over what was read.

    Args:
        rows: From :func:`collect`.
        path: The picture.
    """
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    for row in rows:
        axis.plot([point['tokens'] / 1e6 for point in row['curve']],
                  [point['bpc'] for point in row['curve']],
                  marker='.',
                  label=f'{name_of(row)}: {row["bpc"]:.3f}')
    axis.set_xlabel('characters read, millions')
    axis.set_ylabel('bits per character, validation')
    axis.grid(alpha=.3)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, title='after training, all validation text')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    rows = [collect(path) for path in args.tests]
    for row in rows:
        print(f'{name_of(row)}: {row["parameters"]:,} parameters, '
              f'{row["iterations"]} iterations, {row["bpc"]:.4f} bpc')
    write_json(args.out, dict(rows=rows, environment=rows[0]['environment']))
    draw(rows, args.plot)


if __name__ == '__main__':
    run_tool(main)
