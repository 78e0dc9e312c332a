"""The language model's benchmarks at tiny sizes, and the tables from them."""

import json

import pytest
import torch

from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json

pytest.importorskip('mmengine')

NANO = '''
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(
    type='fma_vision.LanguageModelTask',
    net=dict(
        type='fma_vision.FMALanguageModel',
        vocab_size=11,
        embed_dims=8,
        depth=2,
        num_heads=2,
        attn=dict(type='FMAttention1D', cell_size=4, rank=2)))
train_dataloader = dict(batch_size=3, dataset=dict(length=20))
'''
TWIN = NANO.replace("'FMAttention1D', cell_size=4, rank=2",
                    "'FullAttention1D'")


@pytest.fixture
def streaming(load_script, monkeypatch):
    module = load_script('tools/analysis_tools/benchmark_lm.py')
    monkeypatch.setattr(module, 'CHECK_LENGTH', 53)
    return module


@pytest.fixture
def collector(load_script):
    pytest.importorskip('matplotlib')
    return load_script('tools/analysis_tools/collect_lm.py')


@pytest.fixture
def tables(load_script, tmp_path, monkeypatch):
    """The tables of what lies in the test's own folder."""
    module = load_script('benchmarks/tables.py')
    monkeypatch.setattr(module, 'RESULTS', tmp_path)
    return module.TABLES


@pytest.fixture
def configs(tmp_path):
    """A small model and its twin, as files."""
    paths = [tmp_path / name for name in ('nano.py', 'twin.py')]
    for path, text in zip(paths, (NANO, TWIN)):
        path.write_text(text)
    return [str(path) for path in paths]


def test_streaming(streaming, tables, configs, tmp_path, capsys):
    out = tmp_path / 'lm_streaming_cpu.json'
    streaming.main([
        configs[0], '--twin', configs[1], '--contexts', '32', '256',
        '--twin-contexts', '32', '--steps', '10', '--threads',
        str(torch.get_num_threads()), '--out',
        str(out)
    ])
    found = json.loads(out.read_text())
    ours, twin = found['models']
    short, long = ours['rows']
    assert (short['context'], long['context']) == (32, 256)
    # Four steps are not timed, and half of the others come before.
    assert long['prefill_tokens'] == 256 - 9
    assert long['state_tokens'] == 256 + 5
    # Keys and values of 2 layers, 8 channels, float32.
    assert long['cache_bytes'] == 261 * 2 * 2 * 8 * 4
    assert long['state_over_cache'] < 1
    assert twin['rows'][0]['state_over_cache'] == 1
    assert ours['ratios'] == dict(
        contexts=[256, 32],
        step_seconds=long['step_seconds']['median'] /
        short['step_seconds']['median'],
        state_bytes=long['state_bytes'] / short['state_bytes'])
    assert max(m['check']['relative_error'] for m in found['models']) < 1e-4
    assert all(row['prefill_peak_bytes'] > 0 for row in ours['rows'])
    assert capsys.readouterr().out.count(configs[1]) == 1
    text = tables['language model streaming']()
    assert '| `nano`, 256 |' in text and '| `twin`, 32 |' in text
    assert f'{ours["ratios"]["state_bytes"]:.2f} × the bytes' in text


def test_streaming_refuses(streaming, configs, tmp_path, monkeypatch, capsys):
    from fma_vision.engine import UserError
    with pytest.raises(SystemExit):
        streaming.parse_args(['--contexts', '2048', '64'])
    assert 'each context must exceed 68 tokens' in capsys.readouterr().err
    masked = tmp_path / 'masked.py'
    masked.write_text(NANO.replace('depth=2', 'depth=2, causal=False'))
    with pytest.raises(UserError, match='no causal language model'):
        streaming.build(str(masked), None, 0)
    with pytest.raises(UserError, match='no checkpoint file'):
        streaming.build(configs[0], str(tmp_path / 'none.pth'), 0)
    net = streaming.build(configs[0], None, 0)
    step = net.step

    def forgetful(token, state):
        return step(token, state)[0], state

    monkeypatch.setattr(net, 'step', forgetful)
    with pytest.raises(UserError, match='differs from the parallel form'):
        streaming.check(net, 'nano')


def test_streaming_loads_weights(streaming, configs, tmp_path):
    from fma_vision.utils.configs import build_model, load_model_config
    model = build_model(load_model_config(configs[0]))
    torch.save(model.state_dict(), tmp_path / 'nano.pth')
    net = streaming.build(configs[0], str(tmp_path / 'nano.pth'), 5)
    for name, value in model.net.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def fill_work_dir(folder, text, scores):
    """A training of two parts, the second resumed, and its test."""
    for part, steps in (('1', (10, 20)), ('2', (20, 30))):
        data = folder / part / 'vis_data'
        data.mkdir(parents=True)
        (data / 'config.py').write_text(text)
        lines = []
        for step in steps:
            lines.append(dict(loss=2., iter=step, step=step))
            lines.append(dict(bpc=4 - step / 10 + int(part), step=step))
        (data / 'scalars.json').write_text(''.join(
            json.dumps(line) + '\n' for line in lines))
    return write_json(
        folder / 'test.json',
        dict(
            config=f'configs/{folder.name}.py',
            metrics=scores,
            environment=collect_environment('cpu', 0)))


def test_collect(collector, tables, tmp_path):
    tests = [
        fill_work_dir(tmp_path / name, text,
                      dict(bpc=bpc, nats=bpc * .7, perplexity=7.5))
        for name, text, bpc in (('fma', NANO, 2.), ('full', TWIN, 2.125))
    ]
    out, plot = tmp_path / 'books_lm.json', tmp_path / 'plots' / 'lm.png'
    collector.main([*map(str, tests), '--out', str(out), '--plot', str(plot)])
    fma, full = json.loads(out.read_text())['rows']
    assert fma['attention'] == 'FMAttention1D'
    assert full['attention'] == 'FullAttention1D'
    assert fma['parameters'] > full['parameters'] > 0
    assert (fma['iterations'], fma['tokens']) == (30, 30 * 3 * 20)
    assert (fma['bpc'], full['bpc']) == (2., 2.125)
    # The resumed part wins where both logged.
    assert [(p['iterations'], p['bpc']) for p in fma['curve']] == [(10, 4.),
                                                                   (20, 4.),
                                                                   (30, 3.)]
    assert plot.read_bytes().startswith(b'\x89PNG')
    text = tables['language model']()
    assert '| `fma` |' in text and '2.125 | 7.50 |' in text


def test_collect_refuses(collector, tmp_path):
    from fma_vision.engine import UserError
    test = tmp_path / 'test.json'
    with pytest.raises(UserError, match='no such file'):
        collector.collect(test)
    write_json(test, dict(metrics=dict(mIoU=1.)))
    with pytest.raises(UserError, match="has no .'bpc', 'nats'"):
        collector.collect(test)
    write_json(test, dict(metrics=dict(bpc=1., nats=1., perplexity=2.)))
    with pytest.raises(UserError, match='holds no log'):
        collector.collect(test)


def test_tables_without_results(tables):
    for name in ('language model streaming', 'language model'):
        assert tables[name]() is None
