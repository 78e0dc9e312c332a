"""Finds the library of C kernels, or compiles it, and loads it once.

In this order:

1. the library beside this file, if it was built from the sources that lie
   there, with today's flags;
2. one in the cache, which is compiled where it is absent: the folder
   ``FMA_KERNELS_CACHE``, else the system's for caches;
3. where that cannot be written or loaded from, one in a temporary folder,
   for this process alone.

``FMA_KERNELS_NATIVE=0`` turns the library off; :mod:`.build` lists the other
environment variables.
"""
import ctypes
import hashlib
import logging
import os
import sys
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Iterator, Optional, Tuple

import torch

from . import build

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Whether this process was forked after this module was imported: the threads
# that PyTorch believes to have are then not there.
_forked = False


def _remember_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_remember_fork)

# What fma_abi() returns: raised whenever a signature changes.
ABI = 1


@torch.compiler.assume_constant_result
def unavailable() -> Optional[str]:
    """Why the library cannot be used here, or None; the first call loads."""
    return _find()[1]


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: if it cannot be used; says why.
    """
    found, reason = _find()
    if found is None:
        raise RuntimeError(f'the native kernels cannot be used: {reason}')
    return found


@lru_cache(maxsize=None)
def _find() -> Tuple[Optional[ctypes.CDLL], Optional[str]]:
    if os.environ.get('FMA_KERNELS_NATIVE') == '0':
        return None, 'FMA_KERNELS_NATIVE=0 turns it off'
    broken = ''
    try:
        if _is_current(build.FOLDER / build.NAME):
            try:
                return _load(build.FOLDER / build.NAME), None
            except OSError as error:
                broken = f'{error}; and '
        return _compiled(), None
    except (build.BuildError, OSError) as error:
        return None, f'{broken}{error}'


def _is_current(path: Path) -> bool:
    """Whether a library comes from the sources, where there are any."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return not build.sources() or build.key().encode() in content


def _load(path: Path) -> ctypes.CDLL:
    """Raises OSError if the file is no library, or not the one expected."""
    found = ctypes.CDLL(str(path))
    abi = found.fma_abi() if hasattr(found, 'fma_abi') else None
    if abi != ABI:
        raise OSError(f'{path} has interface {abi} instead of {ABI}')
    if _forked:
        found.fma_forked()
    return found


def _compiled() -> ctypes.CDLL:
    if not build.sources():
        raise build.BuildError('this installation holds neither a library '
                               'that loads nor its C files: reinstall it')
    key = build.key(build.identity(build.compiler()))
    try:
        return _cached(_cache_folder(), key)
    except (OSError, RuntimeError):  # read-only, full, noexec, no home
        with tempfile.TemporaryDirectory(
                prefix='fma_kernels-',
                ignore_cleanup_errors=True) as folder:  # Windows: in use
            return _cached(Path(folder), key)


def _cache_folder() -> Path:
    """Raises RuntimeError where the user has no home."""
    named = os.environ.get('FMA_KERNELS_CACHE')
    if named:
        return Path(named).expanduser()
    if sys.platform == 'darwin':
        base = Path.home() / 'Library' / 'Caches'
    elif build.WINDOWS:
        base = Path(os.environ.get('LOCALAPPDATA') or Path.home())
    else:
        base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return base / 'fma_kernels'


def _cached(folder: Path, key: str) -> ctypes.CDLL:
    """The library of a key from a folder; compiled if it is not there.

    A file's name holds the hash of its content: to map a truncated library
    would end the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _intact(folder, key)
    if path is None:
        with _lock(folder / 'lock'):
            path = _intact(folder, key) or _build(folder, key)
    return _load(path)


def _intact(folder: Path, key: str) -> Optional[Path]:
    for path in folder.glob(f'{key}-*{build.SUFFIX}'):
        if path.stem == f'{key}-{_digest(path)}':
            return path
        path.unlink()
    return None


def _build(folder: Path, key: str) -> Path:
    logging.getLogger(__name__).info(
        'compiling the CPU kernels of fma_kernels into %s, once', folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / build.NAME
        build.build(built)
        path = folder / f'{key}-{_digest(built)}{build.SUFFIX}'
        os.replace(built, path)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process compiles, the others wait.

    Without it nothing breaks, as files are put in place whole: where there
    are no such locks, each process compiles for itself.
    """
    with open(path, 'w') as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # some network file systems
                pass
        yield
