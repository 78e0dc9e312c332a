"""What a training and its test left in a work folder."""
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from fma_vision.engine import UserError


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
        part = _read_part(log)
        for kind in {kind for kind, _ in part}:
            # What came after the start of this part was done again.
            first = min(step for other, step in part if other == kind)
            lines = {
                key: line
                for key, line in lines.items()
                if key[0] != kind or key[1] < first
            }
        lines.update(part)
    if not lines:
        raise UserError(f'{folder} holds no log of a training '
                        '(*/vis_data/scalars.json)')
    ordered = sorted(lines, key=lambda key: (key[1], key[0]))
    return [lines[key] for key in ordered], logs[-1].parent / 'config.py'
