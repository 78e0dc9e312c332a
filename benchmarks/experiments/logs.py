"""Reading results, and what a training and its test left in a folder."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from ..engine import UserError


def read_json(path: Path) -> Dict[str, Any]:
    """A file of one JSON object.

    Raises:
        UserError: It is missing or damaged; names it.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if not isinstance(found, dict):
        raise UserError(f'{path} is no object: {str(found)[:40]}')
    return found


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """The objects of a file that holds one JSON object a line.

    Raises:
        UserError: It is missing, or a line is damaged; names both.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    found = []
    for number, text in enumerate(lines, 1):
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise UserError(f'{path}, line {number} cannot be read: '
                            f'{error}') from error
        if not isinstance(found[-1], dict):
            raise UserError(f'{path}, line {number} is no object: '
                            f'{text[:40].decode()}')
    return found


def read_test(path: Path, metrics: Sequence[str]) -> Dict[str, Any]:
    """A test's result.

    Args:
        path: Written by ``tools/test.py --out``.
        metrics: What it must hold.

    Raises:
        UserError: There is no such file, it is damaged or lacks a metric.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file; tools/test.py --out writes it')
    test = read_json(path)
    missing = set(metrics) - set(test.get('metrics', {}))
    if missing:
        raise UserError(f'{path} has no {sorted(missing)}: it is the '
                        'test of another kind of model')
    return test


def _read_part(log: Path) -> Dict[Tuple[bool, int], Dict[str, Any]]:
    """The lines of one part of a training, by kind and step.

    A part that was killed may end within a line; what is before it counts.

    Raises:
        UserError: Another line is damaged.
    """
    lines = log.read_bytes().splitlines()
    found = {}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            found['loss' in line, line['step']] = line
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise UserError(f'{log}, line {number} cannot be read: '
                                f'{error}') from error
    return found


def read_log(folder: Path) -> Tuple[List[Dict[str, Any]], Path]:
    """What a training logged, all its parts in order.

    Steps of training are iterations; those of validation are epochs where
    the training counts epochs.

    Args:
        folder: The work folder.

    Returns:
        The logged lines, one at most for each step of training (they hold
        ``loss``) and of validation, and the configuration of the last part.

    Raises:
        UserError: Nothing was logged, or it cannot be read.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    lines: Dict[Tuple[bool, int], Dict[str, Any]] = {}
    for log in logs:
        keyed = _read_part(log)
        for kind in (False, True):
            steps = [step for training, step in keyed if training == kind]
            if steps:
                # What came after the start of this part was done again.
                first = min(steps)
                lines = {
                    key: line
                    for key, line in lines.items()
                    if key[0] != kind or key[1] < first
                }
        lines.update(keyed)
    if not lines:
        raise UserError(f'{folder} holds no log of a training '
                        '(*/vis_data/scalars.json)')
    ordered = sorted(lines, key=lambda key: (key[1], key[0]))
    return [lines[key] for key in ordered], logs[-1].parent / 'config.py'
