"""What all tests share: few threads, fixed seeds, and the real data."""

import importlib.util
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Callable

# Set before NumPy and torch load their thread pools.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
# Nothing here may fetch from the network.
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Where there is no GPU, Triton's kernels run through its interpreter: chosen
# when they are first imported.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers for a test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup() -> None:
    """Forgets what MMEngine keeps of past tests, by name.

    Loggers that write to a console that is gone; and what was logged, since
    runs of one config that start in the same second have one name.
    """
    module = sys.modules.get('mmengine.logging')
    if module is None:
        return
    module.MessageHub._instance_dict.clear()
    loggers = module.MMLogger._instance_dict
    for name, logger in list(loggers.items()):
        streams = [getattr(x, 'stream', None) for x in logger.handlers]
        if any(stream is not None and stream.closed for stream in streams):
            del loggers[name]


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def load_script() -> Callable[[str], ModuleType]:
    """Imports a script by its path from the root, without running it."""

    def load(path: str) -> ModuleType:
        file = ROOT / path
        spec = importlib.util.spec_from_file_location(f'script_{file.stem}',
                                                      file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set under data/; skips where it is absent."""

    def find(name: str) -> Path:
        folder = ROOT / 'data' / name
        if not folder.is_dir():
            pytest.skip(f'real data {name!r} is not at data/{name}')
        return folder

    return find


@pytest.fixture
def quick_init(monkeypatch) -> None:
    """Skip drawing random weights, which takes most of a large build."""
    for name in ('trunc_normal_', 'kaiming_normal_', 'kaiming_uniform_',
                 'normal_', 'uniform_', 'xavier_uniform_'):
        monkeypatch.setattr(torch.nn.init, name,
                            lambda tensor, *_, **__: tensor)


# Before pytest selects by marker.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list) -> None:
    no_gpu = not torch.cuda.is_available()
    skip = pytest.mark.skip(reason='needs a CUDA device')
    sampled = defaultdict(list)
    for item in items:
        # Keywords hold names of folders, too.
        if no_gpu and item.get_closest_marker('gpu'):
            item.add_marker(skip)
        if item.get_closest_marker('sampled'):
            sampled[item.nodeid.split('[')[0]].append(item)
    for test, cases in sampled.items():
        # The same ones each time.
        chosen = random.Random(test).sample(cases, -(-len(cases) // 5))
        for item in cases:
            if item not in chosen:
                item.add_marker('slow')
