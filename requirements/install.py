"""Builds the environment that the Makefile uses: `install.py VENV`.

Creates the virtual environment where it is absent, installs this checkout
into it in editable mode at the versions of `constraints.txt`, and checks that
the result imports. Needs the standard library only.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import List

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONSTRAINTS = HERE / 'constraints.txt'
# Imported together with the check, because a broken pair (torch and
# torchvision, mmengine and mmcv) shows only when both are loaded.
STACK = ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmseg',
         'mmpretrain', 'fma_kernels', 'fma_vision')


def run(command: List[str]) -> bool:
    """Shows a command, runs it from the checkout; True if it succeeded."""
    print('+', ' '.join(command), flush=True)
    return subprocess.run(command, cwd=ROOT).returncode == 0


def imports(python: str, modules: str) -> subprocess.CompletedProcess:
    """Tries `import modules` in the environment, without output."""
    return subprocess.run([python, '-W', 'ignore', '-c', f'import {modules}'],
                          cwd=ROOT,
                          capture_output=True,
                          text=True)


def last_line(process: subprocess.CompletedProcess) -> str:
    """The line of a traceback that says what went wrong."""
    return (process.stderr.strip().splitlines() or ['no output'])[-1]


def create(folder: Path) -> str:
    """Creates the environment unless it works; returns its interpreter."""
    python = folder / 'bin' / 'python'
    if os.name == 'nt':
        python = folder / 'Scripts' / 'python.exe'
    if not python.exists() or imports(str(python), 'pip').returncode:
        if folder.exists() and not (folder / 'pyvenv.cfg').exists():
            sys.exit(f'{folder} exists and is no virtual environment: '
                     'name another folder with VENV=')
        print(
            f'Creating {folder} with Python {sys.version.split()[0]}',
            flush=True)
        try:
            venv.create(folder, with_pip=True, clear=folder.exists())
        except (subprocess.CalledProcessError, OSError) as error:
            sys.exit(f'Could not create {folder}: {error}\n'
                     'On Debian and Ubuntu `apt install python3-venv` adds '
                     'what Python lacks there; otherwise name another '
                     'interpreter with PYTHON=.')
    return str(python)


def repair_opencv(python: str) -> None:
    """Puts the headless OpenCV over one that lacks system libraries.

    The desktop wheel needs libGL and libxcb, which servers often lack. Its
    package stays listed, so that what requires it stays satisfied.
    """
    if imports(python, 'cv2').returncode == 0:
        return
    pins = [
        line.strip() for line in CONSTRAINTS.read_text().splitlines()
        if line.startswith('opencv-python-headless==')
    ]
    print(
        'OpenCV lacks a system library (libGL or libxcb): using its '
        'headless build',
        flush=True)
    run([
        python, '-m', 'pip', 'install', '--no-deps', '--force-reinstall',
        *(pins or ['opencv-python-headless'])
    ])
    tried = imports(python, 'cv2')
    if tried.returncode:
        sys.exit(f'OpenCV does not import: {last_line(tried)}')


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit('usage: python requirements/install.py VENV')
    folder = Path(sys.argv[1])
    python = create(folder)
    print(
        'Installing the pinned versions: about 3 GB to fetch the first '
        'time, mostly PyTorch',
        flush=True)
    if not run([
            python, '-m', 'pip', 'install', '--use-pep517', '--constraint',
            str(CONSTRAINTS), '--editable', '.[dev]'
    ]):
        sys.exit('\npip could not install the requirements (see above). Is '
                 'the package index reachable, and is there about 8 GB of '
                 'free disk? Run the same command again: what was fetched '
                 'is cached.')
    repair_opencv(python)
    print('Checking that the stack imports', flush=True)
    tried = imports(python, ', '.join(STACK))
    if tried.returncode:
        sys.exit(f'The environment does not import: {last_line(tried)}\n'
                 'torch and torchvision must be a matching pair; '
                 f'`rm -rf {folder}` and run the same command again.')


if __name__ == '__main__':
    main()
