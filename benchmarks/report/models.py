"""Tables of models: those of a folder of configs, and shipped weights.

A shipped model is one run of the experiments; its test is kept as
``zoo/PROTOCOL/NAME/seedN.json``, what ``tools/test.py CONFIG WEIGHTS --out``
writes, the log of its training beside it as ``seedN.log.jsonl``. Tests of
other weights lie beside the other results.
"""
import os
from pathlib import Path
from typing import Any, Dict, Optional

import yaml

from .formats import METRICS, load, table

ROOT = Path(__file__).resolve().parents[2]
# Folders of configs whose pages have a table of models.
FOLDERS = ('camvid', 'cifar10', 'dubai_aerial', 'tiny_imagenet100')


def shipped(results: Path) -> Dict[str, Dict[str, Any]]:
    """Tests of shipped weights by config, each with its log, if it is kept."""
    found = {}
    for path in sorted((results / 'zoo').rglob('*.json')):
        test = load(path.parent, path.stem)
        weights = test['checkpoint']
        if Path(weights).is_absolute() or not (ROOT / weights).is_file():
            raise SystemExit(f'{path}: checkpoint {weights} is not a file of '
                             'this repository')
        log = path.with_suffix('.log.jsonl')
        found[test['config']] = dict(test, log=log if log.is_file() else None)
    return found


def models(results: Path, folder: str) -> str:
    """A folder's models, by its metafile, and what shipped weights score."""
    known, pages = shipped(results), ROOT / 'configs' / folder
    text = (pages / 'metafile.yml').read_text(encoding='utf-8')
    rows = []
    for model in yaml.safe_load(text)['Models']:
        name, cost = model['Name'], model['Metadata']
        cells = [
            f'[{name}]({name}.py)', f'{cost["Parameters"] / 1e6:.2f} M',
            f'{cost["FLOPs"] / 1e9:.3f} G', '–', '–'
        ]
        test = known.get(model['Config'])
        if test:
            scores = {
                METRICS[k]: x
                for k, x in test['metrics'].items() if k in METRICS
            }
            links = dict(model=ROOT / test['checkpoint'], log=test['log'])
            cells[-2:] = [
                ', '.join(f'{k} {x:.2f}' for k, x in scores.items()),
                ', '.join(f'[{what}]({os.path.relpath(path, pages)})'
                          for what, path in links.items() if path)
            ]
        rows.append(cells)
    return table(['config', 'parameters', 'MACs', 'score', 'weights'], rows)


def tested(results: Path, *names: str) -> Optional[str]:
    """What weights score, and the command that shows it."""
    rows, commands = [], []
    for name in names:
        test = load(results, name)
        if not test:
            continue
        rows += [[f'`{Path(test["config"]).stem}`, {key}', f'{value:.2f}']
                 for key, value in test['metrics'].items()]
        commands.append(f'`python tools/test.py {test["config"]} '
                        f'{test["checkpoint"]}`')
    return (f'{table(["config, metric", "score"], rows)}\n\n' +
            '; '.join(commands)) if rows else None


def zoo(results: Path) -> Optional[str]:
    """What the weights score that the experiments have made."""
    folder = results / 'zoo'
    return tested(
        folder,
        *(path.relative_to(folder).with_suffix('').as_posix()
          for path in sorted(folder.rglob('*.json'))))
