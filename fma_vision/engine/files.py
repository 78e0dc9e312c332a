"""Writing files whole or not at all."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Union


@contextmanager
def whole_file(path: Union[str, Path]) -> Iterator[BinaryIO]:
    """Opens a file for writing that is either complete or absent.

    The bytes go to a temporary file beside the target, which then takes the
    target's name in one step.

    Args:
        path: The file to write; missing parent folders are made.

    Yields:
        The open temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
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


def write_bytes(path: Union[str, Path], data: bytes) -> Path:
    """Writes a file whole or not at all, see :func:`whole_file`.

    Args:
        path: The file to write; missing parent folders are made.
        data: Its content.

    Returns:
        The path written.
    """
    with whole_file(path) as file:
        file.write(data)
    return Path(path)


def write_json(path: Union[str, Path], content: Any) -> Path:
    """Writes ``content`` as indented JSON, whole or not at all.

    Args:
        path: The file to write.
        content: Anything :func:`json.dumps` takes.

    Returns:
        The path written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    # What is no UTF-8, as in a file's name, is an escape of JSON as well.
    return write_bytes(path, text.encode(errors='backslashreplace'))
