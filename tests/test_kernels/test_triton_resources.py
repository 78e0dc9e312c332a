"""Launch configurations: they fit the hardware, on paper and compiled."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fma_kernels import Hierarchy

triton = pytest.importorskip('triton', reason='triton is not installed')

import resources  # noqa: E402

from fma_kernels.backends.triton import call, configs  # noqa: E402
from fma_kernels.backends.triton.plan import plan  # noqa: E402

TARGETS = (80, 90, 100)
# shape, cell_size, num_levels, rank
GEOMETRIES = [((56, 56), 8), ((56, 56), 4), ((56, 56), 4, None, 2),
              ((7, 7), 4), ((56, 56), 1), ((90, 90), 16), ((14, 14), 8, 0),
              ((56, 56), 8, 1), ((4096, ), 128), ((4096, ), 64, None, 4),
              ((4096, ), 4), ((900, ), 300), ((4096, ), 128, 0)]


def work(plan_,
         head_dim: int,
         itemsize: int,
         sm: int,
         dropout: bool = False) -> configs.Work:
    dim = max(triton.next_power_of_2(head_dim), 16)
    return configs.Work(plan_, dim, itemsize == 4, sm, dropout)


@pytest.mark.parametrize('sm', sorted(configs.SHARED_MEMORY))
@pytest.mark.parametrize('itemsize', [2, 4])
@pytest.mark.parametrize('head_dim', [4, 32, 48, 64, 80, 128])
def test_configurations_fit(head_dim, itemsize, sm) -> None:
    """Blocks are what a matrix unit takes; stages are what memory holds."""
    for geometry in GEOMETRIES:
        p = plan(Hierarchy(*geometry).trimmed())
        for dropout in (False, True):
            w = work(p, head_dim, itemsize, sm, dropout)
            # A configuration, the blocks that stay, and those that pass.
            for config, kept, passing in ((configs.query_config(w, 64, False),
                                           'M', 'N'), (configs.query_config(
                                               w, 64, True), 'MM', 'N'),
                                          (configs.query_config(w, 16, True),
                                           'MM', 'F'), (configs.key_config(w),
                                                        'NN', 'M'),
                                          (configs.summary_config(w), 'NN',
                                           'M'), (configs.subcell_config(
                                               w, 16), 'MM', 'N'),
                                          (configs.subcell_key_config(w, 64),
                                           'NN', 'M')):
                rows = sum(config[f'BLOCK_{x}'] for x in kept)
                rows += config['num_stages'] * 2 * config[f'BLOCK_{passing}']
                used = rows * w.dim * itemsize
                assert used <= configs.SHARED_MEMORY[sm]
                for name, size in config.items():
                    if name.startswith('BLOCK'):
                        assert 16 <= size <= 128 and not size & (size - 1)
                assert config['num_warps'] in (1, 2, 4, 8)
                # Copies are asynchronous from sm_80 on.
                assert config['num_stages'] == 1 or sm >= 80
                assert 0 < (config.get('maxnreg') or 255) <= 255


def test_stages_follow_the_memory() -> None:
    p = plan(Hierarchy((56, 56), 8))

    def stages(sm: int, kept: int = 64, passing: int = 128) -> int:
        return work(p, 64, 2, sm).stages(8, kept, passing)

    assert stages(75) == 1 < stages(89) < stages(80) < stages(90) <= 8
    # An unknown device is taken for the smallest.
    assert 1 <= stages(999) <= stages(89)
    # Without a stage there is no launch.
    assert stages(90, 4096, 4096) == 1


def test_neighbours() -> None:
    config = dict(
        BLOCK_M=64, BLOCK_N=32, num_warps=4, num_stages=2, maxnreg=200)
    found = configs.neighbours(config)
    tried = {(x.num_warps, x.num_stages) for x in found}
    assert len(tried) == len(found)
    assert tried == {(w, s) for w in (2, 4, 8) for s in (1, 2, 3)}
    for x in found:
        assert x.kwargs == dict(BLOCK_M=64, BLOCK_N=32) and x.maxnreg == 200
    config = dict(BLOCK_M=64, num_warps=1, num_stages=1)  # no bound
    assert all(x.maxnreg is None for x in configs.neighbours(config))
    assert {(x.num_warps, x.num_stages)
            for x in configs.neighbours(config)} == {(1, 1), (1, 2), (2, 1),
                                                     (2, 2)}


@pytest.mark.parametrize('value, expected', [(None, False), ('', False),
                                             ('0', False), ('1', True)])
def test_the_search_must_be_asked_for(value, expected, monkeypatch) -> None:
    monkeypatch.delenv('FMA_AUTOTUNE', raising=False)
    if value is not None:
        monkeypatch.setenv('FMA_AUTOTUNE', value)
    assert configs.autotunes() == expected


def test_the_search_is_launched_in_place_of_the_default(monkeypatch) -> None:
    launched, asked = [], []

    class Kernel:
        """Records what it is launched with."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid):
            return lambda **options: launched.append(
                (self.name, grid, options))

    def tuned(kernel, config):
        asked.append(dict(config))
        return Kernel('search')

    monkeypatch.setattr(configs, 'tuned', tuned)
    monkeypatch.setattr(call, 'INTERPRETED', False)
    config = dict(BLOCK_M=16, num_warps=4, num_stages=2)
    monkeypatch.delenv('FMA_AUTOTUNE', raising=False)
    call.run(Kernel('plain'), 5, config, dict(width=3))
    monkeypatch.setenv('FMA_AUTOTUNE', '1')
    call.run(Kernel('plain'), 5, config, dict(width=3))
    # Without stages there is nothing to search for.
    call.run(Kernel('plain'), 6, dict(BLOCK=16, num_warps=4), dict(width=3))
    assert asked == [config]
    assert launched == [('plain', (5, ), dict(width=3, **config)),
                        ('search', (5, ), dict(width=3)),
                        ('plain', (6, ), dict(width=3, BLOCK=16, num_warps=4))]


def test_the_search_is_built_once_for_a_default() -> None:
    from fma_kernels.backends.triton.keys import key_kernel
    p = plan(Hierarchy((56, 56), 8))
    config = configs.key_config(work(p, 32, 2, 90))
    configs.tuned.cache_clear()
    search = configs.tuned(key_kernel, tuple(config.items()))
    assert search is configs.tuned(key_kernel, tuple(config.items()))
    assert len(search.configs) == len(configs.neighbours(config))
    # A choice must not serve another kernel of the same default.
    assert set(search.keys) == {
        'height', 'width', 'heads', 'DIM', 'NDIM', 'CELL', 'PARTS', 'CAUSAL',
        'MASKED', 'DROPOUT', 'TOP', 'SIDE', 'BACKWARD', 'PRECISION'
    }
    configs.tuned.cache_clear()


def test_the_device_that_configurations_are_for(monkeypatch) -> None:
    assert configs.capability(torch.device('cpu')) == 90
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device:
                        (12, 1))
    assert configs.capability(torch.device('cuda')) == 121


@pytest.mark.slow
def test_registers_spills_and_shared_memory() -> None:
    """Offline machine code of every launch: nothing spills, all fits."""
    if not (Path(triton.__file__).parent /
            'backends/nvidia/bin/cuobjdump').exists():
        pytest.skip('this build of triton has no disassembler')
    # Interpreted functions cannot be compiled.
    env = {k: x for k, x in os.environ.items() if k != 'TRITON_INTERPRET'}
    done = subprocess.run(
        [sys.executable, resources.__file__] +
        [str(target) for target in TARGETS],
        env=env,
        capture_output=True,
        text=True)
    assert done.returncode == 0, done.stderr
    kernels = {}
    for row in map(json.loads, done.stdout.splitlines()):
        name = (row['target'], row['case'], row['head_dim'], row['dtype'])
        kernels.setdefault(name, set()).add(row['kernel'])
        assert not row['spilled'] and row['shared'] <= row['limit'], row
    expected = {
        (target, case.name, case.head_dim, case.dtype): case
        for case in resources.cases()
        for target in TARGETS
    }
    assert set(kernels) == set(expected)
    every = {'query_kernel', 'query_kernel backward', 'key_kernel'}
    assert all(every <= found for found in kernels.values())
    for name, case in expected.items():
        if case.num_levels != 0:
            assert {'finest_kernel', 'spread_kernel'} <= kernels[name]
            far = {'summary_kernel'}
            if case.pooled:
                far = {
                    'subcell_kernel', 'subcell_kernel backward',
                    'subcell_key_kernel', 'from_level_kernel',
                    'from_tokens_kernel'
                }
            assert far <= kernels[name]
