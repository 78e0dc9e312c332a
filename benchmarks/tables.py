"""Writes the measured tables into the pages, from benchmarks/results/.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # fail if a page is out of date

A page marks a place with ``<!-- results: NAME -->``; NAME is one of TABLES.
No number is typed by hand: what was not measured leaves its place empty.
"""
import argparse
import re
import sys
from pathlib import Path
from typing import Callable, Dict, Optional

ROOT = Path(__file__).resolve().parents[1]
# Also where this file is imported by its path.
sys.path[:0] = [str(ROOT / 'benchmarks')]
from report import (  # noqa: E402  isort: skip
    backbones, experiments, layers, models, operation)

RESULTS = ROOT / 'benchmarks/results'
PAGES = ('README.md', 'configs/fashion_mnist/README.md',
         'demo/weights/README.md', 'docs/attention.md', 'docs/experiments.md',
         'docs/language_model.md', 'kernels/README.md',
         *(f'configs/{folder}/README.md' for folder in models.FOLDERS))


def of(function: Callable, *args: str) -> Callable[[], Optional[str]]:
    """A table of what lies in the folder of results by then."""
    return lambda: function(RESULTS, *args)


# What a mark names, and what is put there; None leaves the place empty.
TABLES: Dict[str, Callable[[], Optional[str]]] = {
    'operation, CPU': of(operation.speed),
    'operation, details': of(operation.details),
    'operation, GPU': of(operation.gpu),
    'linear variant, CPU': of(operation.linear),
    'backbones': of(backbones.backbones),
    'backbones, details': of(backbones.details),
    'backbones, profile': of(backbones.profile),
    'backbones, GPU': of(backbones.gpu),
    'language model streaming': of(layers.streaming),
    'language model precision': of(layers.precisions),
    'layers': of(layers.layers),
    'approximation': of(layers.approximation),
    'street weights': of(models.tested, 'street8'),
    'Fashion-MNIST': of(models.tested, 'fashion_mnist'),
    'language model weights': of(models.tested, 'books_lm_shipped'),
    'zoo': of(models.zoo),
    'softmax shares': of(experiments.shares),
    'resolutions': of(experiments.resolutions),
    **{
        f'experiments, {name}': of(experiments.comparison, name)
        for name in experiments.DATASETS
    },
    **{
        f'models, {folder}': of(models.models, folder)
        for folder in models.FOLDERS
    },
}


def fill(text: str, name: str) -> str:
    """Replaces what stands between the marks of one page."""

    def replace(match: 're.Match') -> str:
        if match[1] not in TABLES:
            raise SystemExit(f'{name}: no table is called {match[1]!r}; '
                             f'allowed: {sorted(TABLES)}')
        body = TABLES[match[1]]()
        middle = f'\n{body}\n' if body else '\n'
        return (f'<!-- results: {match[1]} -->{middle}'
                f'<!-- /results: {match[1]} -->')

    return re.sub(
        r'<!-- results: (.+?) -->\n.*?<!-- /results: \1 -->',
        replace,
        text,
        flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    for name in PAGES:
        path = ROOT / name
        text = path.read_text(encoding='utf-8')
        filled = fill(text, name)
        if filled != text and args.check:
            sys.exit(f'{name} is out of date: run python benchmarks/tables.py')
        if filled != text:
            path.write_text(filled, encoding='utf-8')
            print(f'{name} updated')


if __name__ == '__main__':
    main()
