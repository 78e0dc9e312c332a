"""What a training and its test left in a work folder."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from ..engine import UserError


def read_test(path: Path, metrics: Sequence[str]) -> Dict[str, Any]:
    """A test's result.

    Args:
        path: Written by ``tools/test.py --out``.
        metrics: What it must hold.

    Raises:
        UserError: There is no such file, or it lacks a metric.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file; tools/test.py --out writes it')
    test = json.loads(path.read_text())
    missing = set(metrics) - set(test.get('metrics', {}))
    if missing:
        raise UserError(f'{path} has no {sorted(missing)}: it is the '
                        'test of another kind of model')
    return test


def read_log(folder: Path, metric: str) -> Tuple[List[Dict[str, Any]], Path]:
    """What a training logged, all its parts in order.

    Args:
        folder: The work folder.
        metric: What tells a validation from a training step.

    Returns:
        The logged lines, one at most for each step and kind, and the
        configuration of the last part.

    Raises:
        UserError: Nothing was logged.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    lines: Dict[Tuple[int, bool], Dict[str, Any]] = {}
    for log in logs:
        part = [json.loads(text) for text in log.read_text().splitlines()]
        if part:
            # What came after the start of this part was done again by it.
            first = min(line['step'] for line in part)
            lines = {k: v for k, v in lines.items() if k[0] < first}
        lines.update(((line['step'], metric in line), line) for line in part)
    if not lines:
        raise UserError(f'{folder} holds no log of a training '
                        '(*/vis_data/scalars.json)')
    return [lines[key] for key in sorted(lines)], logs[-1].parent / 'config.py'
