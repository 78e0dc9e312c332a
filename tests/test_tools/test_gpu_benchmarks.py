"""The GPU benchmarks, rehearsed on a CPU at tiny sizes."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from fma_kernels import Hierarchy, fma2d

NANO = '''
default_scope = 'mmpretrain'
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fma_vision.FMATransformer',
        arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]),
        attn=dict(type='FMAttention2D', cell_size=2)))
'''
OPTIONS = ('--device', 'cpu', '--backend', 'torch', '--tiny', '--repeats', '2',
           '--least', '0.0005', '--seed', '3')


@pytest.fixture
def module(repo_root, monkeypatch):
    """Imports a file of kernels/benchmarks as the scripts do."""
    monkeypatch.syspath_prepend(str(repo_root / 'kernels' / 'benchmarks'))
    return pytest.importorskip


@pytest.fixture
def gpu(module, monkeypatch):
    """The script, with sizes that take no time."""
    common, speed = module('gpu_common'), module('gpu_speed')
    profile = module('gpu_profile')
    case = common.Case
    monkeypatch.setattr(speed, 'TINY_2D',
                        [case((16, 16), (4, 2), 1, 8, 2, flex=False)])
    monkeypatch.setattr(speed, 'TINY_1D',
                        [case((96, ), (16, 8), 1, 8, 1, True, False)])
    monkeypatch.setattr(profile, 'TINY', [case((16, 16), (4, ), 1, 8, 1)])
    check = module('gpu_check')
    monkeypatch.setattr(
        check, 'TINY',
        [((16, 19), 4, 2, 8, 1, {}), ((16, 16), 4, 1, 8, 2, dict(mask=True)),
         ((90, ), 8, 1, 8, 1, dict(causal=True, dtype='float32')),
         ((16, 19), 4, 1, 8, 1, dict(dropout_p=0.1, dropout_seed=7)),
         ((16, 19), 2, 2, 8, 1, dict(pool_queries=True))])
    monkeypatch.setattr(check, 'TINY_LARGEST',
                        case((90, ), (8, ), 1, 8, 1, True))
    return module('gpu')


@pytest.fixture
def args(module, tmp_path):
    return module('gpu').parse_args([*OPTIONS, '--out', str(tmp_path)])


def read(folder, name='op_gpu'):
    return json.loads((folder / f'{name}.json').read_text())


def test_parts_run_and_record(gpu, module, tmp_path, capsys, load_script,
                              monkeypatch):
    parts = ('check', 'sanitize', 'op2d', 'op1d', 'graphs', 'profile')
    status = gpu.main([
        *OPTIONS, '--out',
        str(tmp_path), '--commit', 'abc', '--parts', *parts, 'summary'
    ])
    assert status == 0
    found = read(tmp_path)
    assert list(found) == list(parts)
    for part in found.values():
        assert part['finished'] and part['seconds'] > 0
        assert part['environment']['seed'] == 3
        assert part['environment']['commit']['hash']
        assert part['environment']['packages']['torch'] == torch.__version__
    *rows, largest = found['check']['rows']
    assert all(max(r['errors'].values()) < 0.02 for r in rows)
    assert largest['first_seconds'] > 0
    backends = found['check']['setting']['backends']
    assert 'torch: chosen' in backends['float64']
    assert 'chosen' in backends['bfloat16']
    assert [r['cell_size'] for r in found['op2d']['rows']] == [4, 2]
    for row in found['op2d']['rows'] + found['op1d']['rows']:
        geometry = Hierarchy(
            tuple(row['shape']), row['cell_size'], causal=row['causal'])
        assert row['visited_pairs'] == geometry.visited_pairs
        assert row['flops'] == geometry.flops(1, 8, row['batch'])
        times = row['times']['training']
        assert times['fma']['median'] > 0 and times['fma']['peak_bytes'] > 0
        if row['causal']:
            assert 'pooled' not in times
        else:
            pooled = geometry.flops(1, 8, row['batch'], pool_queries=True)
            assert row['pooled_flops'] == pooled and 'pooled' in row['errors']
            assert row['tflops']['forward']['pooled'] == pytest.approx(
                pooled / row['times']['forward']['pooled']['median'] / 1e12)
        assert row['sdpa_kernels']['sdpa'] == 'chosen by PyTorch'
        assert 'flatters FMA' in row['notes']['flex']
        # What cannot run here says why, and costs nothing else.
        assert 'left out' in times['flex']
        assert 'natten' in times['natten'].lower()
        assert row['faster_than']['forward']['sdpa'] == pytest.approx(
            row['times']['forward']['sdpa']['median'] /
            row['times']['forward']['fma']['median'])
    assert found['profile']['rows'][0]['training']
    assert 'not run' in found['profile']['rows'][0]['ncu']
    printed = capsys.readouterr().out
    assert 'check: 6 of 6 passed' in printed
    assert backends['float64'] in printed
    assert 'not measured' in printed
    assert (tmp_path / 'summary_gpu.txt').read_text() in printed

    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    text = tables.TABLES['operation, GPU']()
    assert '16 × 16, batch 2, cell 4' in text and '| 96, cell 8 |' in text
    assert 'TFLOP/s' in tables.TABLES['operation, GPU details']()
    assert tables.TABLES['backbones, GPU']() is None

    pytest.importorskip('matplotlib')
    plots = module('plots')
    monkeypatch.setattr(sys, 'argv', ['plots', '--results', str(tmp_path)])
    plots.main()
    assert (tmp_path / 'plots' / 'op2d_gpu.png').stat().st_size > 1000
    assert (tmp_path / 'plots' / 'op1d_gpu.png').exists()
    assert not (tmp_path / 'plots' / 'backbones_gpu.png').exists()


def test_tables_without_results(load_script, tmp_path, monkeypatch):
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    for name in ('operation, GPU', 'operation, GPU details', 'backbones, GPU'):
        assert tables.TABLES[name]() is None
        marks = f'<!-- results: {name} -->\n<!-- /results: {name} -->'
        assert tables.fill(marks, 'page') == marks


def test_a_wrong_op_is_not_timed(gpu, module, tmp_path, monkeypatch):
    ops, check = module('gpu_ops'), module('gpu_check')
    speed = module('gpu_speed')

    def wrong(*tensors, **options):
        found = ops.attention(*tensors, **options)
        if options['backend'] == 'torch' and tensors[0].dtype != torch.float64:
            return tuple(1.05 * x for x in found)
        return found

    monkeypatch.setattr(check, 'attention', wrong)
    status = gpu.main([
        *OPTIONS, '--out',
        str(tmp_path), '--parts', 'check', 'op2d', 'summary'
    ])
    assert status == 1
    found = read(tmp_path)
    *rows, largest = found['check']['rows']
    assert all('off by' in row['reason'] for row in rows)
    assert 'reason' not in largest  # nothing to compare it with
    for row in found['op2d']['rows']:
        assert 'off by' in row['times']['forward']['fma']
        assert row['times']['forward']['sdpa']['median'] > 0
        assert row['faster_than'] == {}
    assert speed.attention is ops.attention  # what is timed is the op itself


def test_forgotten_element_shows(module, args, monkeypatch):
    check, common = module('gpu_check'), module('gpu_common')
    case = common.Case((12, 12), (4, ), 3, 8, 2)
    tensors = common.inputs(case, args, 4)
    grad = tensors.pop()
    options = dict(cell_size=4, backend='torch')
    assert max(check.check(tensors, grad, options, args).values()) < 0.02
    run = check.run

    def forgets(*given):
        found = run(*given)
        found['grad_value'][0, 0, 0, 1, 0] = float('nan')
        return found

    expected = check.reference(tensors, grad, [0, 2], options)
    monkeypatch.setattr(check, 'run', forgets)
    # Neither in an image nor in a head that is compared.
    with pytest.raises(ArithmeticError, match='grad_value is not finite'):
        check.check(tensors, grad, options, args, expected)


def test_inputs_have_a_far_field(module, args):
    common = module('gpu_common')
    x = common.inputs(common.Case((64, 50), (4, ), 2, 8, 1), args, 1)[0]
    assert x.shape == (1, 64, 50, 2, 8) and x.dtype == torch.bfloat16
    assert float(x.float().square().mean()) == pytest.approx(1, rel=0.05)
    # White noise would leave 1 / 256 of the variance.
    means = x.float()[:, :48, :48].unflatten(1, (3, 16)).unflatten(3, (3, 16))
    assert float(means.mean((2, 4)).square().mean()) > 0.1


def test_competitors(module):
    ops, common = module('gpu_ops'), module('gpu_common')
    case = common.Case((16, 8), (4, ), 2, 8, 3)
    tensors = [torch.randn(3, 16, 8, 2, 8) for _ in range(3)]
    full = fma2d(*tensors, cell_size=4, num_levels=0)
    torch.testing.assert_close(ops.sdpa(case)(*tensors), full)
    near = ops.windows(case)(*tensors)
    for row in (0, 8):
        window = [x[:, row:row + 8].contiguous() for x in tensors]
        torch.testing.assert_close(near[:, row:row + 8],
                                   fma2d(*window, cell_size=4, num_levels=0))
    assert case.full_flops == 4 * 8 * 2 * 3 * 128**2
    causal = common.Case((16, ), (4, ), 1, 8, 1, True)
    assert causal.full_flops == 4 * 8 * 16 * 17 // 2


def test_flex_kernel_is_what_the_rival_calls(module):
    ops, common = module('gpu_ops'), module('gpu_common')
    flex = module('flex')
    case = common.Case((16, 16), (4, ), 1, 8, 1)
    leaves = [torch.randn(1, 16, 16, 1, 8) for _ in range(3)]
    leaves = [x.requires_grad_() for x in leaves]
    with pytest.MonkeyPatch.context() as patch:
        # The dense form: nothing to compile.
        patch.setattr(flex, 'attend', lambda *x: flex._dense(*x[:6]))
        op, ordered = ops.flex_kernel(case, 4, leaves)
        out = op(*ordered)
    places = flex.layout(Hierarchy((16, 16), 4), out.device).query_places
    out = out.transpose(1, 2)[:, places].unflatten(1, (16, 16))
    torch.testing.assert_close(out, fma2d(*leaves, cell_size=4))


def test_time_in_turns(module, args):
    common = module('gpu_common')
    args.repeats, args.limit, calls = 4, 1., []

    def fails():
        raise RuntimeError('CUDA out of memory. Tried to allocate 1 TiB')

    found = common.time_in_turns(
        dict(
            short=lambda: calls.append(torch.ones(1000)),
            fails=fails,
            long=lambda: calls.append('long')), args, dict(long=2.))
    assert list(found) == ['short', 'fails', 'long']
    assert found['short']['samples'] == 4
    assert found['short']['peak_bytes'] >= 4000
    assert found['fails'] == 'out of memory'
    assert 'expected to take 2 s' in found['long'] and 'long' not in calls


def test_a_lost_device_ends_the_part(module, monkeypatch):
    common = module('gpu_common')

    def lost(device=None):
        raise RuntimeError('CUDA error: an illegal memory access')

    monkeypatch.setattr(torch.cuda, 'synchronize', lost)
    with pytest.raises(RuntimeError, match='illegal'):
        common.attempt(lambda: None, 'cuda')


def test_a_failing_part_leaves_no_old_numbers(gpu, tmp_path, monkeypatch):
    (tmp_path / 'op_gpu.json').write_text(
        json.dumps(dict(check=dict(rows=[dict(errors={})]))))

    def breaks(recorder, args):
        raise KeyError('nothing')

    monkeypatch.setitem(gpu.PARTS, 'check', breaks)
    status = gpu.main(
        [*OPTIONS, '--out',
         str(tmp_path), '--parts', 'check', 'sanitize'])
    assert status == 1
    found = read(tmp_path)
    assert found['check']['rows'] == [dict(reason='failed: KeyError')]
    assert not found['check']['finished']
    assert found['sanitize']['finished']


def test_late_rows_are_left_out(gpu, tmp_path):
    gpu.main([
        *OPTIONS, '--out',
        str(tmp_path), '--budget', '0', '--parts', 'op2d', 'profile'
    ])
    for part in read(tmp_path).values():
        assert 'left out' in part['rows'][0]['reason']


def test_targets(module):
    targets = module('gpu_targets')

    def time(median, peak):
        return dict(median=median, peak_bytes=peak)

    row = dict(
        shape=[256, 256],
        batch=1,
        cell_size=8,
        causal=False,
        flops=100e9,
        full_flops=8000e9,
        least_bytes=dict(forward=2e9, backward=4e9),
        input_bytes=100,
        times=dict(
            forward=dict(
                fma=time(1e-3, 120), sdpa=time(50e-3, 100), flex='none'),
            training=dict(
                fma=time(4e-3, 140), sdpa=time(110e-3, 100), flex='none')))
    machine = dict(matmul_flops=1000e12, copy_bytes=4e12)
    found = targets.derive(row, machine)
    assert found['tflops']['forward'] == pytest.approx(dict(fma=100, sdpa=160))
    # The backward pass is what training takes longer, at 2.5 times the work.
    assert found['tflops']['backward'] == pytest.approx(
        dict(fma=250 / 3, sdpa=20000 / 60))
    assert found['share_of_sdpa']['forward'] == pytest.approx(100 / 160)
    assert found['roofline'] == pytest.approx(
        dict(forward=0.5, backward=1 / 3, training=1.5 / 4))
    assert found['faster_than']['forward'] == pytest.approx(dict(sdpa=50))
    assert found['memory_over_sdpa']['training'] == pytest.approx(
        dict(beyond_inputs=1.4, with_inputs=1.2))
    part = dict(
        rows=[dict(row, **found)],
        seconds=1.,
        finished=False,
        environment=dict(commit=None, date='today'))
    lines = targets.summary(dict(op2d=part))
    assert any('NOT FINISHED' in line for line in lines)

    def verdict(text):
        return next(x for x in lines if text in x).partition(': ')[0]

    assert verdict('op2d forward, cell 8: TFLOP/s') == 'reached'
    assert verdict('op2d backward, cell 8') == 'missed at 1 of 1, by up to 50%'
    assert verdict('op2d forward, 256 x 256, cell 8') == 'reached'
    assert verdict('op2d training, 256 x 256') == (
        'missed at 1 of 1, by up to 31%')
    assert verdict('op2d forward: peak memory') == 'reached'
    assert verdict('op2d training: peak memory') == (
        'missed at 1 of 1, by up to 8%')
    assert verdict('op2d forward: faster than flex') == 'not measured'
    assert verdict('1 M causal') == 'not measured'

    # The faster of two is what a ratio is of, and is named.
    more = dict(row, sdpa_kernels=dict(sdpa='FLASH_ATTENTION'), times={})
    for mode, times in row['times'].items():
        more['times'][mode] = dict(
            times,
            sdpa_cudnn=time(40e-3, 0),
            flex=time(9e-3, 0),
            flex_kernel=time(1.4e-3, 0))
    found = targets.derive(more, machine)
    assert found['share_of_sdpa']['forward'] == pytest.approx(0.5)
    assert found['fastest_sdpa'] == dict(
        forward='sdpa_cudnn',
        training='sdpa_cudnn',
        backward='FLASH_ATTENTION')
    lines = targets.summary(dict(op2d=dict(part, rows=[dict(more, **found)])))
    assert verdict('op2d forward: faster than flex') == (
        'missed at 1 of 1, by up to 7%')
    assert any('cell 8, its kernel alone' in line for line in lines)
    assert any('cell 8, sdpa_cudnn' in line for line in lines)


@pytest.mark.parametrize(
    'reason, verdict',
    [('out of memory', 'missed: out of memory'),
     ('left out: the part had used its 9 s', 'not measured (left out')])
def test_the_largest_must_run(module, reason, verdict):
    targets = module('gpu_targets')
    target, = (t for t in targets.TARGETS if t.must_run)
    size = dict(shape=[2**20], causal=True, batch=1, cell_size=128)
    for row in (dict(size, reason=reason),
                dict(size, times=dict(training=dict(fma=reason)))):
        line = targets.judge(target, dict(op1d=dict(rows=[row])))
        assert line.startswith(verdict)
    runs = dict(
        size, times=dict(training=dict(fma=dict(median=1., peak_bytes=0))))
    # The part broke off before it, or after it.
    lost = dict(reason='failed: RuntimeError')
    line = targets.judge(target, dict(op1d=dict(rows=[lost])))
    assert line.startswith('missed: failed: RuntimeError')
    line = targets.judge(target, dict(op1d=dict(rows=[runs, lost])))
    assert line.startswith('reached')


def test_models(gpu, module, tmp_path, monkeypatch, capsys, load_script):
    pytest.importorskip('mmpretrain')
    models = module('gpu_models')
    (tmp_path / 'nano.py').write_text(NANO)
    (tmp_path / 'windows.py').write_text(
        NANO.replace("'FMAttention2D', cell_size=2", "'WindowAttention'"))
    paths = {'FMA-T': 'nano', 'ViT-S': 'missing', 'Swin-T': 'windows'}
    monkeypatch.setattr(models, 'MODELS', {
        name: str(tmp_path / f'{file}.py')
        for name, file in paths.items()
    })
    monkeypatch.setattr(models, 'TINY', ((40, 2), ))
    assert gpu.main(
        [*OPTIONS, '--out',
         str(tmp_path), '--parts', 'models', 'summary']) == 0
    rows = read(tmp_path, 'backbones_gpu')['models']['rows']
    assert len(rows) == 6
    for row in rows:
        if row['model'] == 'ViT-S':
            assert 'no such file' in row['reason']
        else:
            assert row['images_per_second'] > 0 and row['ratio_to_swin'] > 0
            assert row['peak_memory_bytes'] > 0
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    assert '| FMA-T, 40 × 40, batch 2 |' in tables.TABLES['backbones, GPU']()


def test_models_without_mmengine(module, args, tmp_path, monkeypatch):
    models, common = module('gpu_models'), module('gpu_common')
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    recorder = common.Recorder(tmp_path / 'backbones_gpu.json', args)
    recorder.start('models')
    assert models.part(recorder, args)
    assert 'mmpretrain' in recorder.rows()[0]['reason']


def test_needs_torch_only(repo_root, tmp_path):
    """Where neither timm nor OpenMMLab is installed, and no repository."""
    code = ('import sys, runpy\n'
            "for name in ('timm', 'mmengine', 'mmcv', 'fma_vision',"
            " 'matplotlib'):\n"
            '    sys.modules[name] = None\n'
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n")
    script = repo_root / 'kernels' / 'benchmarks' / 'gpu.py'
    done = subprocess.run([
        sys.executable, '-c', code,
        str(script), *OPTIONS, '--out',
        str(tmp_path), '--parts', 'sanitize', 'models', 'summary'
    ],
                          cwd=tmp_path,
                          env=dict(
                              os.environ,
                              PYTHONPATH=os.pathsep.join([
                                  str(script.parent),
                                  str(repo_root / 'kernels'),
                                  os.environ.get('PYTHONPATH', '')
                              ])),
                          capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert 'models: not run' in done.stdout


def test_script(repo_root, tmp_path):
    """From any folder; a part that fails does not stop the next."""
    pytest.importorskip('matplotlib')
    done = subprocess.run([
        'bash',
        str(repo_root / 'kernels' / 'benchmarks' / 'gpu.sh'),
        str(tmp_path / 'out')
    ],
                          cwd=tmp_path,
                          env=dict(
                              os.environ,
                              REHEARSE='1',
                              BACKEND='nonsense',
                              PARTS='op1d sanitize',
                              PYTHON=sys.executable,
                              COMMIT='feed'),
                          capture_output=True,
                          text=True)
    assert done.returncode == 1, done.stderr
    assert '== op1d failed with status 1' in done.stdout
    assert 'sanitize: passed' in done.stdout
    found = read(tmp_path / 'out')
    assert "got 'nonsense'" in found['op1d']['rows'][0]['times']['forward'][
        'fma']
    assert found['sanitize']['finished']
    seeds = {part['environment']['seed'] for part in found.values()}
    assert len(seeds) == 1


@pytest.mark.gpu
def test_poison_is_what_comes_next(module):
    check = module('gpu_check')
    check.poison(2**24, 'cuda')
    assert torch.empty(2**20, device='cuda').isnan().all()
    assert torch.empty(2**10, device='cuda').isnan().all()


def test_defaults(module):
    args = module('gpu').parse_args([])
    assert isinstance(args, argparse.Namespace) and args.seed is not None
    assert (args.device, args.backend, args.dtype) == ('cuda', 'triton',
                                                       'bfloat16')
