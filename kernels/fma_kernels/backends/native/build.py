"""How the C files beside this one become a library.

setup.py runs this file as well, where torch may not be installed: it needs
the standard library only. The environment variables are

- ``CC``: the compiler, with arguments if need be; only this one is tried;
- ``FMA_KERNELS_CFLAGS``: more flags, such as those of a sanitizer.
"""
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

FOLDER = Path(__file__).resolve().parent
WINDOWS = sys.platform == 'win32'
SUFFIX = '.dll' if WINDOWS else '.dylib' if sys.platform == 'darwin' else '.so'
# No tag of a Python in the name: ctypes loads it into any.
NAME = f'_fma_native{SUFFIX}'
# No -march: a file for one instruction set names it, and is called where the
# processor has it. No -ffast-math: it breaks the exponential's rounding.
FLAGS = [
    '-O3', '-std=gnu11', '-shared', '-fvisibility=hidden', '-fno-math-errno',
    *([] if WINDOWS else ['-fPIC', '-pthread'])
]
COMPILERS = ('clang', 'gcc') if WINDOWS else ('cc', 'gcc', 'clang')


class BuildError(Exception):
    """Why there is no library, in a sentence that says what to do."""


def sources() -> List[Path]:
    """The C files; a package may come without them."""
    return sorted(FOLDER.glob('*.c'))


def _split(variable: str) -> List[str]:
    """The words of an environment variable.

    Raises:
        BuildError: if a quote has no end.
    """
    text = os.environ.get(variable, '')
    try:
        return shlex.split(text, posix=not WINDOWS)
    except ValueError as error:
        raise BuildError(f'{variable}={text} cannot be read ({error}): '
                         'correct it or unset it') from None


def flags() -> List[str]:
    return FLAGS + _split('FMA_KERNELS_CFLAGS')


def compiler() -> List[str]:
    """The command that compiles.

    Raises:
        BuildError: if there is none.
    """
    named = os.environ.get('CC')
    if named:
        command, *arguments = _split('CC') or ['']
        path = shutil.which(command)
        if path is None:
            raise BuildError(f'the C compiler that CC={named} names is not '
                             'there: correct CC or unset it')
        return [path, *arguments]
    for command in COMPILERS:
        path = shutil.which(command)
        if path is not None:
            return [path]
    raise BuildError(
        'there is no C compiler, which fma_kernels needs where it was not '
        'compiled on install: ' +
        ('install clang (MSVC has no vector types)'
         if WINDOWS else 'install gcc or clang (Debian: apt install gcc; '
         'macOS: xcode-select --install)'))


def identity(command: List[str]) -> str:
    """Which compiler it is: its path, arguments and version."""
    return '\n'.join([*command, _run([*command, '--version']).stdout])


def key() -> str:
    """Hash of all that decides about the library but the compiler."""
    digest = hashlib.sha256()
    parts = [sys.platform, platform.machine(), *flags()]
    digest.update('\0'.join(parts).encode())
    for path in sources() + sorted(FOLDER.glob('*.h')):
        text = path.read_bytes()
        digest.update(f'\0{path.name}\0{len(text)}\0'.encode() + text)
    return digest.hexdigest()[:32]


def build(target: Path) -> None:
    """Compiles the C files into the library ``target``.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    command = compiler()
    result = _run([
        *command, *flags(), f'-DFMA_KEY="{key()}"', '-o',
        str(target), *map(str, sources()),
        *([] if WINDOWS else ['-lm', '-ldl'])
    ])
    if result.returncode == 0 and target.exists():
        return
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if 'error' in line.lower()] or lines
    raise BuildError(f'{" ".join(command)} could not compile the kernels '
                     f'({lines[0].strip() if lines else "no message"}): '
                     'choose another C compiler with CC')


def _run(command: List[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding='utf-8',
            errors='replace',
            env=dict(os.environ, LC_ALL='C'),
            timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f'the C compiler does not run ({error}): choose '
                         'another with CC') from error
