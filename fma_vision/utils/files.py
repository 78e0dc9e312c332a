"""Writing files whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Union


def write_bytes(path: Union[str, Path], data: bytes) -> Path:
    """Writes a file so that it is either complete or absent.

    The bytes go to a temporary file beside the target, which then takes the
    target's name in one step.

    Args:
        path: The file to write; missing parent folders are made.
        data: Its content.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result should be readable as usual.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return path


def write_json(path: Union[str, Path], content: Any) -> Path:
    """Writes ``content`` as indented JSON, whole or not at all.

    Args:
        path: The file to write.
        content: Anything :func:`json.dumps` takes.

    Returns:
        The path written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    return write_bytes(path, text.encode())
