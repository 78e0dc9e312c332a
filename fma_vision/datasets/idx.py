"""The IDX file format of MNIST and its relatives."""
import gzip
import zlib
from pathlib import Path

import numpy as np


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
        path (Path): The file, gzip-compressed if its name ends in ``.gz``.

    Returns:
        ndarray: uint8, with the axes the file names.

    Raises:
        ValueError: The file is no such IDX file, or is cut short.
    """
    try:
        data = (
            gzip.open(path).read()
            if path.suffix == '.gz' else path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f'{path} is a broken gzip file: {error}') from error
    # Two zero bytes, the type (8: unsigned byte), the number of axes.
    if len(data) < 4 or data[:3] != b'\x00\x00\x08' or not 1 <= data[3] <= 3:
        raise ValueError(f'{path} is no IDX file of unsigned bytes')
    ndim = data[3]
    if len(data) < 4 + 4 * ndim:
        raise ValueError(f'{path} is cut short inside its header')
    shape = np.frombuffer(data, '>u4', count=ndim, offset=4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * ndim)
    if body.size != shape.prod():
        raise ValueError(f'{path} holds {body.size} bytes, its header says '
                         f'{tuple(shape.tolist())}')
    return body.reshape(shape)


def find_idx(root: Path, name: str) -> Path:
    """The file of that name, compressed or not.

    Args:
        root (Path): The folder.
        name (str): Name without ``.gz``.

    Returns:
        Path: The file.

    Raises:
        FileNotFoundError: Neither is there.
    """
    for path in (root / name, root / f'{name}.gz'):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f'no {name} nor {name}.gz in {root}. Make the layout with python '
        'tools/dataset_converters/fashion_mnist.py')
