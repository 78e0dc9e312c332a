"""The benchmark tool: what it times, what it refuses, what it records."""

import json
import statistics

import pytest
import torch

from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_bytes, write_json
from fma_vision.engine.timing import peak_memory, summarise, time_interleaved

pytest.importorskip('mmpretrain')

NANO = '''
default_scope = 'mmpretrain'
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fma_vision.FMATransformer',
        arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]),
        attn=dict(type='FMAttention2D', cell_size=2)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
'''


@pytest.fixture
def benchmark(load_script):
    return load_script('tools/analysis_tools/benchmark.py')


@pytest.fixture
def nano(tmp_path) -> str:
    path = tmp_path / 'nano.py'
    path.write_text(NANO)
    return str(path)


@pytest.fixture
def twin(tmp_path) -> str:
    path = tmp_path / 'twin.py'
    path.write_text(
        NANO.replace("'FMAttention2D', cell_size=2", "'WindowAttention'"))
    return str(path)


def quick(*options: str) -> list:
    return [
        *options, '--shape', '40', '24x32', '--repeats', '3', '--warmup', '1'
    ]


def test_record(benchmark, nano, twin, tmp_path, capsys):
    out = tmp_path / 'results' / 'record.json'
    benchmark.main([
        nano, twin, *quick('--part', 'backbone', '--batch', '2'), '--out',
        str(out)
    ])
    record = json.loads(out.read_text())
    results = record['results']
    assert [(r['config'], r['shape']) for r in results] == [(nano, [40, 40]),
                                                            (twin, [40, 40]),
                                                            (nano, [24, 32]),
                                                            (twin, [24, 32])]
    for row, reference in zip(results, [results[1]] * 2 + [results[3]] * 2):
        median = statistics.median(row['samples_seconds'])
        assert len(row['samples_seconds']) == 3
        assert row['latency_seconds']['median'] == median > 0
        assert row['images_per_second'] == pytest.approx(2 / median)
        assert row['ratio_of_medians'] == pytest.approx(
            median / reference['latency_seconds']['median'])
        # At least one map of 8 channels a token, in float32.
        tokens = 2 * row['shape'][0] * row['shape'][1] // 16
        assert row['peak_memory_bytes'] > tokens * 8 * 4
    assert results[0]['parameters'] > results[2]['parameters'] - 1
    environment = record['environment']
    assert environment['packages']['torch'] == torch.__version__
    assert environment['seed'] == 0
    assert environment['cpu']
    assert record['arguments']['batch'] == 2
    printed = capsys.readouterr().out
    assert printed.count(nano) == printed.count(twin) == 2
    assert '24x32' in printed


def test_model_and_backward(benchmark, nano):
    args = benchmark.parse_args(
        [nano, *quick('--backward', '--dtype', 'bfloat16')])
    subject = benchmark.Subject(nano, args)
    subject.check((40, 40))
    assert subject.part.training
    whole = benchmark.measure([subject], (40, 40), args)[0]
    assert all(p.grad is None for p in subject.part.parameters())
    assert whole['ratio_of_medians'] == 1
    assert whole['parameters'] == sum(p.numel()
                                      for p in subject.model.parameters())


def test_backward_reaches_every_parameter(benchmark, nano, monkeypatch):
    args = benchmark.parse_args([nano, *quick('--backward')])
    subject = benchmark.Subject(nano, args)
    monkeypatch.setattr(subject.part, 'zero_grad', lambda **_: None)
    subject.call((24, 24))()
    missing = [
        name for name, p in subject.part.named_parameters() if p.grad is None
    ]
    assert not missing


def test_dtype_reaches_the_products(benchmark, nano):
    args = benchmark.parse_args([nano, '--dtype', 'bfloat16'])
    subject = benchmark.Subject(nano, args)
    assert subject.run(subject.image((24, 24)))[0].dtype == torch.bfloat16
    args = benchmark.parse_args([nano])
    subject = benchmark.Subject(nano, args)
    assert subject.run(subject.image((24, 24)))[0].dtype == torch.float32


def test_images_are_the_configs(benchmark, nano):
    args = benchmark.parse_args([
        nano, '--batch', '3', '--cfg-options', 'model.backbone.in_channels=1'
    ])
    subject = benchmark.Subject(nano, args)
    image = subject.image((24, 20))
    assert image.shape == (3, 1, 24, 20)
    assert torch.equal(image, subject.image((24, 20)))
    assert subject.run(image)[0].shape == (3, 3)


def test_segmentor_without_auxiliary_head(benchmark, repo_root):
    pytest.importorskip('mmseg')
    config = str(
        repo_root /
        'configs/ade20k/fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py')
    args = benchmark.parse_args([
        config, '--cfg-options', 'model.backbone.arch=nano',
        'model.decode_head.in_channels=[32,64,128,256]',
        'model.decode_head.channels=16', 'model.auxiliary_head.in_channels=128'
    ])
    subject = benchmark.Subject(config, args)
    assert subject.model.auxiliary_head is None
    maps = subject.run(subject.image((64, 32)))
    assert maps[0].shape == (1, 150, 16, 8)


def test_wrong_attention_is_not_timed(benchmark, nano, monkeypatch):
    """An op that is off by a little stops the tool before any number."""
    from fma_vision.engine import UserError
    from fma_vision.layers import attention
    right = attention.fma2d

    def wrong(*args, backend, **kwargs):
        out = right(*args, backend=backend, **kwargs)
        return out if backend == 'naive' else out * 1.5

    monkeypatch.setattr(attention, 'fma2d', wrong)
    monkeypatch.setattr(benchmark, 'time_interleaved', pytest.fail)
    with torch.random.fork_rng():
        args = benchmark.parse_args([nano, *quick()])
        subject = benchmark.Subject(nano, args)
        # Initial weights are so small that attention hardly matters.
        for name, p in subject.part.named_parameters():
            if 'qkv' in name or 'proj' in name:
                torch.nn.init.normal_(p)
        with pytest.raises(UserError, match='naive reference'):
            subject.check((24, 24))


def test_attention_keeps_its_backend(benchmark, nano):
    from fma_vision.layers import FMAttention2D
    args = benchmark.parse_args([nano, *quick()])
    subject = benchmark.Subject(nano, args)
    subject.check((24, 24))
    backends = {
        layer.backend
        for layer in subject.part.modules()
        if isinstance(layer, FMAttention2D)
    }
    assert backends == {'auto'}


def test_outputs_must_be_finite(benchmark, nano):
    from fma_vision.engine import UserError
    subject = benchmark.Subject(nano, benchmark.parse_args([nano]))
    torch.nn.init.constant_(subject.model.head.fc.bias, float('nan'))
    with pytest.raises(UserError, match='not finite'):
        subject.check((24, 24))


def test_a_size_that_a_model_refuses_is_named(benchmark):
    """mmpretrain's Swin takes no map smaller than its window."""
    from fma_vision.engine import UserError
    config = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
    args = benchmark.parse_args([config, '--shape', '64'])
    with pytest.raises(UserError, match='fails on an image of 64 x 64'):
        benchmark.benchmark(args)


@pytest.mark.parametrize('option,value', [
    ('--shape', '0'),
    ('--shape', '12x'),
    ('--shape', '3x4x5'),
    ('--shape', 'big'),
    ('--batch', '0'),
    ('--repeats', '-1'),
    ('--dtype', 'int8'),
])
def test_bad_options_are_named(benchmark, option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse_args(['a.py', option, value])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


def test_a_missing_device_is_named(benchmark, nano):
    from fma_vision.engine import UserError
    if torch.cuda.is_available():
        pytest.skip('there is a CUDA device')
    args = benchmark.parse_args([nano, '--device', 'cuda'])
    with pytest.raises(UserError, match='--device cuda'):
        benchmark.benchmark(args)


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'abc'}
    samples = time_interleaved(calls, repeats=4, warmup=1, least_seconds=1e-12)
    assert {name: len(s) for name, s in samples.items()} == dict(a=4, b=4, c=4)
    # One warm-up and one calibration each, then rounds from a new start.
    assert order[:6] == list('aabbcc')
    assert order[6:] == list('abc'
                             'bca'
                             'cab'
                             'abc')


def test_short_calls_are_repeated_within_a_sample():
    count = []
    time_interleaved({'a': lambda: count.append(1)},
                     repeats=1,
                     warmup=1,
                     least_seconds=0.005)
    assert len(count) > 100


def test_summary_of_samples():
    found = summarise([4., 1., 2., 3., 5.])
    assert found == dict(
        median=3., quartile_1=2., quartile_3=4., least=1., most=5.)
    assert summarise([2.])['median'] == 2.


def test_peak_memory_counts_live_tensors():
    mebibyte = 2**20

    def call() -> torch.Tensor:
        first = torch.zeros(mebibyte, dtype=torch.uint8)
        second = torch.zeros(mebibyte, dtype=torch.uint8)
        del first, second
        return torch.zeros(mebibyte // 2, dtype=torch.uint8)

    assert 2 * mebibyte <= peak_memory(call) < 2 * mebibyte + 4096
    weight = torch.zeros(mebibyte, dtype=torch.uint8)
    # What was there before does not count.
    assert peak_memory(lambda: weight.view(2, -1)) == 0


def test_peak_memory_prints_nothing(capfd):
    peak_memory(lambda: torch.zeros(3) + 1)
    assert capfd.readouterr() == ('', '')


def test_environment_can_be_written(tmp_path):
    record = collect_environment(seed=3)
    path = write_json(tmp_path / 'a' / 'b.json', record)
    assert json.loads(path.read_text()) == record
    assert record['threads'] == torch.get_num_threads()
    if record['commit'] is not None:
        assert len(record['commit']['hash']) == 40


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / 'file'
    write_bytes(path, b'old')
    with pytest.raises(TypeError):
        write_bytes(path, 'not bytes')
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b'new')
    assert path.read_bytes() == b'new'
    # Readable as any other new file.
    (tmp_path / 'usual').touch()
    assert path.stat().st_mode == (tmp_path / 'usual').stat().st_mode
