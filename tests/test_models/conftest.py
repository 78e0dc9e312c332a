"""Fixtures of the model tests, and oracles that several files compare with."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same numbers in each test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def run_python() -> Callable[[str], subprocess.CompletedProcess]:
    """Run code in a fresh interpreter that finds this checkout."""

    def run(code: str) -> subprocess.CompletedProcess:
        paths = [str(ROOT), str(ROOT / 'kernels')]
        env = dict(os.environ, OMP_NUM_THREADS='1')
        if env.get('PYTHONPATH'):
            paths.append(env['PYTHONPATH'])
        env['PYTHONPATH'] = os.pathsep.join(paths)
        env.pop('PYTHONWARNINGS', None)
        return subprocess.run([sys.executable, '-c', code],
                              capture_output=True,
                              text=True,
                              env=env,
                              timeout=300)

    return run
