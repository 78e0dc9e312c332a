"""Finds the library of C kernels, or compiles it, and loads it once.

In this order:

1. the library beside this file, if it was built from the sources that lie
   there, with today's flags;
2. one in the cache, which is compiled where it is absent: the folder
   ``FMA_KERNELS_CACHE``, else the system's for caches. Where there is no
   compiler, one that any compiler made of these sources and flags;
3. where that cannot be written or loaded from, one in a temporary folder,
   for this process alone.

``FMA_KERNELS_NATIVE=0`` turns the library off, ``FMA_KERNELS_ISA`` chooses
its instruction set; :mod:`.build` lists the other environment variables.
"""
import ctypes
import hashlib
import logging
import os
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

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
# As fma_best_isa() numbers them.
ISAS = ('portable', 'avx2', 'avx512')
_SWITCH = {
    **dict.fromkeys(('', '1', 'true', 'on', 'yes'), True),
    **dict.fromkeys(('0', 'false', 'off', 'no'), False)
}
# A file of the cache: hashes of the sources, of the compiler, of the content.
_CACHED = re.compile('[0-9a-f]{32}-[0-9a-f]{32}-[0-9a-f]{32}')
# So many of them are kept: those used last.
KEPT = 8


@torch.compiler.assume_constant_result
def unavailable() -> Optional[str]:
    """Why the library cannot be used here, or None; the first call loads.

    Raises:
        ValueError: if ``FMA_KERNELS_NATIVE`` or ``FMA_KERNELS_ISA`` has a
            value that is not allowed.
    """
    found, reason = _find()
    if found is not None and os.environ.get('FMA_KERNELS_ISA'):
        chosen_isa()
    return reason


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: if it cannot be used; says why.
    """
    found, reason = _find()
    if found is None:
        raise RuntimeError(f'the native kernels cannot be used: {reason}')
    return found


@lru_cache(maxsize=1)
def _best_isa() -> int:
    return library().fma_best_isa()


def chosen_isa() -> int:
    """The instruction set: the best one, or what FMA_KERNELS_ISA names.

    Raises:
        ValueError: if there is no such one, or this processor lacks it.
    """
    best, name = _best_isa(), os.environ.get('FMA_KERNELS_ISA')
    if not name:
        return best
    here = ISAS[:best + 1]
    if name not in here:
        raise ValueError('FMA_KERNELS_ISA must be one of '
                         f'{list(here)} on this processor, got {name!r}')
    return here.index(name)


@lru_cache(maxsize=None)
def _find() -> Tuple[Optional[ctypes.CDLL], Optional[str]]:
    switch = os.environ.get('FMA_KERNELS_NATIVE', '')
    if switch.lower() not in _SWITCH:
        raise ValueError('FMA_KERNELS_NATIVE must be one of '
                         f'{[name for name in _SWITCH if name]} or unset, '
                         f'got {switch!r}')
    if not _SWITCH[switch.lower()]:
        return None, f'FMA_KERNELS_NATIVE={switch} turns it off'
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
    key = build.key()
    try:
        identity = build.identity(build.compiler())
    except build.BuildError as error:
        return _warmed(key, error)
    name = f'{key}-{_digest(identity.encode())}'
    try:
        return _cached(_cache_folder(), name)
    except (OSError,
            RuntimeError) as error:  # read-only, full, noexec, no home
        reason = error
    with tempfile.TemporaryDirectory(
            prefix='fma_kernels-',
            ignore_cleanup_errors=True) as folder:  # Windows: in use
        found = _cached(Path(folder), name)
    warnings.warn(
        f'the cache of the CPU kernels cannot be used ({reason}), so every '
        'process compiles them anew: name a folder that can be written with '
        'FMA_KERNELS_CACHE', RuntimeWarning)
    return found


def _warmed(key: str, missing: build.BuildError) -> ctypes.CDLL:
    """The library from a cache that was filled when there was a compiler."""
    try:
        path = _intact(_cache_folder(), key)
    except RuntimeError:  # no home
        path = None
    if path is None:
        raise missing
    try:
        return _load(path)
    except OSError as error:
        raise build.BuildError(f'{error}; and {missing}') from error


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


def _cached(folder: Path, name: str) -> ctypes.CDLL:
    """The library of a name from a folder; compiled if it is not there.

    Args:
        name: hashes of sources and compiler; that of the content follows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _intact(folder, name)
    if path is None:
        with _lock(folder / 'lock'):
            path = _intact(folder, name) or _build(folder, name)
            _prune(folder)
    return _load(path)


def _files(folder: Path, start: str = '') -> List[Path]:
    """Of the cache, the one used last first; no other file of the folder."""
    found = []
    for path in folder.glob(f'{start}*{build.SUFFIX}'):
        if _CACHED.fullmatch(path.stem):
            with suppress(FileNotFoundError):  # removed by another process
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def _intact(folder: Path, start: str) -> Optional[Path]:
    """A file that is whole: to map a truncated one would end the process."""
    for path in _files(folder, f'{start}-'):
        with suppress(OSError):  # not ours to touch, removed meanwhile
            os.utime(path)
        with suppress(OSError):
            if path.stem.endswith(_digest(path.read_bytes())):
                return path
            path.unlink()
    return None


def _prune(folder: Path) -> None:
    """Removes what was not used for long.

    No file in use breaks: it stays mapped, or, on Windows, is kept.
    """
    for path in _files(folder)[KEPT:]:
        with suppress(OSError):
            path.unlink()


def _build(folder: Path, name: str) -> Path:
    logging.getLogger(__name__).info(
        'compiling the CPU kernels of fma_kernels into %s, once', folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / build.NAME
        build.build(built)
        content = _digest(built.read_bytes())
        path = folder / f'{name}-{content}{build.SUFFIX}'
        os.replace(built, path)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


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
