"""What measures a GPU, rehearsed on a CPU at tiny sizes."""
import json
import os
import subprocess
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from fma_kernels import Hierarchy, fma2d

OPTIONS = ('--device', 'cpu', '--backend', 'torch', '--quick', '--seed', '3')


@pytest.fixture
def module(repo_root, monkeypatch):
    """Imports a file of benchmarks/ as the scripts do."""
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    return pytest.importorskip


@pytest.fixture
def ops(module, monkeypatch):
    """The script, with flex_attention's dense form: nothing to compile."""
    flex = module('rivals.flex')
    if not hasattr(flex.pytorch, 'AuxRequest'):
        pytest.skip('the rival needs torch 2.9')
    monkeypatch.setattr(flex, 'attend', lambda *x: flex._dense(*x[:6]))
    threads = torch.get_num_threads()
    yield module('ops')
    torch.set_num_threads(threads)


@pytest.fixture
def tables(load_script, tmp_path, monkeypatch):
    found = load_script('benchmarks/tables.py')
    monkeypatch.setattr(found, 'RESULTS', tmp_path)
    return found.TABLES


def read(path):
    return json.loads(path.read_text())


def test_parts_and_tables(ops, module, tables, tmp_path, monkeypatch):
    assert tables['operation, GPU']() is None
    out = tmp_path / 'op_gpu.json'
    monkeypatch.setenv('COMMIT', 'feed')
    monkeypatch.setattr('fma_vision.engine.environment.git_commit',
                        lambda: None)
    parts = 'machine', 'op2d', 'op1d', 'kernels'
    options = *OPTIONS, '--threads', '1', '--out', str(out)
    assert ops.main([*options, '--parts', *parts]) == 0
    found = read(out)
    assert list(found) == [*parts]
    assert {len(part['rows']) for part in found.values()} == {1, 2, 4}
    for part in found.values():
        assert part['environment']['seed'] == 3
        assert part['environment']['commit']['hash'] == 'feed'
    for row in found['op2d']['rows'] + found['op1d']['rows']:
        grid = Hierarchy(
            tuple(row['grid']), row['cell_size'], causal=row['causal'])
        assert row['pairs'] == grid.visited_pairs
        names = {'fma', 'sdpa'}
        if not row['causal']:
            names |= {'pooled', 'windows', 'flex', 'flex_kernel'}
        # What cannot run here says why, and costs nothing else.
        assert set(row['seconds']) == set(row['peak_bytes']) == names
        assert set(row['reasons']) == {'natten', 'sdpa_cudnn'}
        assert row['ratio']['sdpa'] == (
            row['seconds']['sdpa']['median'] / row['seconds']['fma']['median'])
        assert set(row['errors']) == names & {'fma', 'pooled', 'flex'}
        assert all('sdpa' in x for x in row['errors'].values())
        assert all(max(x.values()) < .01 for x in row['errors'].values())
    training, = (r for r in found['op2d']['rows'] if r['mode'] == 'training')
    # 2 images, 576 tokens, 3 heads x 32 in two bytes: three gradients.
    assert training['peak_bytes']['fma'] > 3 * 2 * 576 * 96 * 2
    kernels = found['kernels']['rows'][1]['microseconds']
    assert list(kernels.values())[0] == max(kernels.values()) > 0
    page = tables['operation, GPU']()
    assert '| 24 × 24, batch 2, cell 4, training |' in page
    assert '| 300, causal, cell 128, inference |' in page
    assert 'commit feed' in page
    flops = 2 * 3.5 * training['flops']
    rate = flops / training['seconds']['fma']['median'] / 1e12
    assert f'batch 2, cell 4, training | {rate:.3g} |' in page


def test_a_wrong_op_is_not_timed(ops, module, tables, tmp_path, monkeypatch):
    case = module('case')
    right = case.fma1d

    def wrong(*tensors, **options):
        if tensors[0].dtype != torch.float64:
            options['mass'] = False
        return right(*tensors, **options)

    monkeypatch.setattr(case, 'fma1d', wrong)
    out = tmp_path / 'op_gpu.json'
    status = ops.main([*OPTIONS, '--out', str(out), '--parts', 'op1d'])
    assert status == 1
    for row in read(out)['op1d']['rows']:
        assert 'off by' in row['reason'] and 'seconds' not in row
    assert tables['operation, GPU']() is None


@pytest.mark.parametrize('options, answer', [({}, 0), (dict(mass=False), 1)])
def test_check(module, tmp_path, monkeypatch, options, answer):
    ops, entries, case = module('ops'), module('gpu_check'), module('case')
    right = case.fma2d

    def changed(*tensors, **given):
        if tensors[0].dtype != torch.float64:
            given.update(options)
        return right(*tensors, **given)

    monkeypatch.setattr(case, 'fma2d', changed)
    out = tmp_path / 'op_gpu.json'
    threads = str(torch.get_num_threads())
    argv = *OPTIONS, '--threads', threads, '--out', str(out), '--parts'
    assert ops.main([*argv, 'check']) == answer
    rows = read(out)['check']['rows']
    assert len(rows) == len(entries.QUICK)
    for row in rows:
        if answer and len(row['grid']) == 2:
            assert 'off' in row['reason']
        else:
            assert row['worst'] < .01
            switched = {'mask', 'dropout_p'} & set(row['options'])
            assert ('sdpa' in row['errors']) != bool(switched)


def test_forgotten_element_shows(module, monkeypatch):
    case = module('case')
    given = module('gpu_check').image((12, 12), 4, batch=2, backend='torch')
    tensors = given.tensors()
    assert max(case.check(given, tensors).values()) < .01
    run = case.run

    def forgets(case, *given, **options):
        found = run(case, *given, **options)
        if case.backend == 'torch':
            # Neither in an image nor in a head that is compared.
            found['grad_value'][0, 0, 0, 1, 0] = float('nan')
        return found

    monkeypatch.setattr(case, 'run', forgets)
    with pytest.raises(ArithmeticError, match='grad_value is not finite'):
        case.check(given, tensors)


def test_inputs_have_a_far_field(module):
    x = module('case').Case((64, 50), 4, batch=2, dtype='bfloat16').tensors()
    assert x[0].shape == (2, 64, 50, 3, 32) and x[0].dtype == torch.bfloat16
    assert float(x[0].float().square().mean()) == pytest.approx(1, rel=.05)
    # White noise would leave 1 / 256 of the variance.
    means = x[0].float()[:, :48, :48]
    means = means.unflatten(1, (3, 16)).unflatten(3, (3, 16)).mean((2, 4))
    assert float(means.square().mean()) > .1


def test_rivals(module):
    case = module('case').Case((16, 8), 4, heads=2, head_dim=8, batch=3)
    tensors = case.tensors()
    full = fma2d(*tensors, cell_size=4, num_levels=0)
    torch.testing.assert_close(case.sdpa(tensors), full)
    near = module('rivals.near').windows(tensors)
    for row in (0, 8):
        window = [x[:, row:row + 8].contiguous() for x in tensors]
        torch.testing.assert_close(near[:, row:row + 8],
                                   fma2d(*window, cell_size=4, num_levels=0))
    assert case.all_pairs == 128**2
    assert replace(case, grid=(16, ), causal=True).all_pairs == 16 * 17 // 2


def test_a_call_fails_alone_but_a_lost_device_ends_all(module, monkeypatch):
    measure = module('measure')

    def fails():
        raise RuntimeError('CUDA out of memory. Tried to allocate 1 TiB')

    good = dict(good=lambda: torch.ones(1000))
    args = Namespace(device='cpu', repeats=1, least=0)
    for calls in (good, dict(good, bad=fails)):
        row, = measure.compare([({}, calls)], args)
        assert row['peak_bytes']['good'] >= 4000
        assert list(row['seconds']) == ['good'] and 'reason' not in row
    assert row['reasons'] == dict(bad='out of memory')
    # Without the first there is nothing to compare with.
    row, = measure.compare([({}, dict(bad=fails))], args, good=good['good'])
    assert row['reason'] == 'out of memory'

    def lost(device=None):
        raise RuntimeError('CUDA error: an illegal memory access')

    monkeypatch.setattr(torch.cuda, 'synchronize', lost)
    with pytest.raises(RuntimeError, match='illegal'):
        measure.attempt(lambda: None, 'cuda')


def test_models(module, tables, tmp_path, monkeypatch):
    models = module('backbones')
    assert tables['backbones, GPU']() is None
    nano = dict(model_name='fma_nano')
    names = {'Swin-T': nano, 'FMA-T': nano, 'ViT-S': dict(model_name='none')}
    monkeypatch.setattr(models, 'TIMM', names)
    out = tmp_path / 'backbone_gpu.json'
    threads = str(torch.get_num_threads())
    argv = [*OPTIONS, '--threads', threads, '--out', str(out), '--parts']
    assert models.main([*argv, 'gpu']) == 0
    for row in read(out)['gpu']['rows']:
        assert set(row['seconds']) == {'Swin-T', 'FMA-T'}
        assert 'Unknown model (none)' in row['reasons']['ViT-S']
        assert row['peak_bytes']['FMA-T'] > 0
    page = tables['backbones, GPU']()
    assert page.count('| 64 × 64, training |') == 2 and '| FMA-T |' in page
    # A model whose output depends on the backend is not timed.
    monkeypatch.setitem(models.TOLERANCES, 'bfloat16', -1.)
    assert models.main([*argv, 'gpu']) == 1
    row = read(out)['gpu']['rows'][0]
    assert 'from the torch backend' in row['reasons']['FMA-T']
    assert 'FMA-T' not in row['seconds'] and 'Swin-T' in row['seconds']


@pytest.mark.slow
def test_script(repo_root, tmp_path):
    """From any folder; a part that fails does not stop the next."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$@"\ncase "$1" in *ops.py) exit 3;;'
                      ' esac\n')
    python.chmod(0o755)
    done = subprocess.run(
        ['bash', str(repo_root / 'benchmarks/gpu.sh')],
        cwd=tmp_path,
        env=dict(
            os.environ,
            REHEARSE='1',
            OUT=str(tmp_path / 'out'),
            PARTS='op1d models',
            PYTHON=str(python)),
        capture_output=True,
        text=True)
    assert done.returncode == 1, done.stderr
    begin, failed, second, *_ = done.stdout.split('== ')[1:]
    assert begin.startswith('op1d\n') and '--parts op1d' in begin
    assert f'--out {tmp_path}/out/op_gpu.json' in begin
    assert failed.startswith('op1d FAILED with status 3')
    assert second.startswith('models\n') and 'backbones.py' in second
    assert '--parts gpu' in second
    assert '== check' not in done.stdout


@pytest.mark.gpu
def test_poison_is_what_comes_next(module):
    module('case').poison(2**24, 'cuda')
    assert torch.empty(2**20, device='cuda').isnan().all()
    assert torch.empty(2**10, device='cuda').isnan().all()
