"""Files of results."""
import json
from pathlib import Path
from typing import Any, Dict, List, Optional


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """The lines of a file of results; none where it is not there.

    Raises:
        SystemExit: A line is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise SystemExit(f'{path}, line {number} cannot be read: {error}')
        if not isinstance(found[-1], dict):
            raise SystemExit(f'{path}, line {number} is no object')
    return found


def read_object(path: Path, *keys: str) -> Dict[str, Any]:
    """A file of one JSON object.

    Raises:
        SystemExit: It is damaged, or lacks one of the keys.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise SystemExit(f'{path} cannot be read: {error}')
    missing = [
        k for k in keys if not isinstance(found, dict) or k not in found
    ]
    if missing:
        raise SystemExit(f'{path} has no {", ".join(missing)}')
    return found


def load(results: Path, name: str) -> Optional[Dict[str, Any]]:
    """A file of results, or None where it was not measured.

    Raises:
        SystemExit: It is damaged.
    """
    path = results / f'{name}.json'
    return read_object(path) if path.exists() else None
