"""Writes the measured tables into the pages, from benchmarks/results/.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # fail if a page is out of date

A page marks a place with ``<!-- results: NAME -->``; NAME is one of TABLES.
No number is typed by hand: what was not measured leaves its place empty. The
results of the experiments go into metafiles, too.
"""
import argparse
import re
import sys
from pathlib import Path
from typing import Callable, Dict, Optional

# Also where this file is imported by its path. The protocol is plain data.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'benchmarks'), str(ROOT / 'tools/experiments')]
from report import (  # noqa: E402  isort: skip
    approximation, attention_layers, backbones, experiments, language,
    operation, zoo)

RESULTS = ROOT / 'benchmarks/results'
PAGES = ('README.md', 'configs/lm/README.md', 'configs/lra/README.md',
         'demo/weights/README.md', 'docs/attention.md', 'docs/experiments.md',
         'docs/language_model.md', 'kernels/README.md',
         *(f'configs/{folder}/README.md' for folder in zoo.FOLDERS))
METAFILES = tuple(f'configs/{folder}/metafile.yml' for folder in zoo.FOLDERS)


def of(function: Callable, *args: str) -> Callable[[], Optional[str]]:
    """A table of what lies in the folder of results by then."""
    return lambda: function(RESULTS, *args)


# What a mark names, and what is put there; None leaves the place empty.
TABLES: Dict[str, Callable[[], Optional[str]]] = {
    'operation, CPU': of(operation.speed),
    'operation, details': of(operation.op_details),
    'operation, GPU': of(operation.op_gpu),
    'operation, GPU details': of(operation.op_gpu_details),
    'kernel resources': of(operation.kernel_resources),
    'op 1D, CPU': of(operation.op_1d),
    'linear variant, CPU': of(operation.linear),
    'backbones': of(backbones.backbones),
    'backbones, details': of(backbones.details),
    'backbones, profile': of(backbones.profile),
    'backbones, GPU': of(backbones.backbones_gpu),
    'shipped weights': of(backbones.shipped),
    'small classification': of(backbones.classification),
    'language model streaming': of(language.streaming),
    'language model precision': of(language.precisions),
    'language model': of(language.language_models),
    'ListOps': of(language.list_ops),
    'shipped language model': of(language.shipped_language_model),
    'approximation': of(approximation.approximation),
    'approximation, short': of(approximation.approximation_short),
    'attention layers': of(attention_layers.attention_short),
    'attention layers, details': of(attention_layers.attention_details),
    'attention layers, accuracy': of(attention_layers.attention_accuracy),
    'targets': of(experiments.targets),
    'softmax shares': of(experiments.shares),
    'ablations': of(experiments.ablations),
    'resolutions': of(experiments.resolutions),
    'missing runs': of(experiments.missing),
    **{
        f'experiments, {name}': of(experiments.comparison, name)
        for name in experiments.DATASETS
    },
    'zoo': of(zoo.zoo),
    **{
        f'models, {folder}': of(zoo.models, folder)
        for folder in zoo.FOLDERS
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
    for name in PAGES + METAFILES:
        path = ROOT / name
        text = path.read_text(encoding='utf-8')
        if name in METAFILES:
            filled = zoo.fill_metafile(text, RESULTS)
        else:
            filled = fill(text, name)
        if filled == text:
            continue
        if args.check:
            sys.exit(f'{name} is out of date: run python '
                     'benchmarks/tables.py')
        path.write_text(filled, encoding='utf-8')
        print(f'{name} updated')


if __name__ == '__main__':
    main()
