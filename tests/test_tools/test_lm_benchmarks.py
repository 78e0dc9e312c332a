"""The language model's benchmarks at tiny sizes, and the tables from them."""

import json

import pytest
import torch

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


def test_tables_without_results(tables):
    assert tables['language model streaming']() is None
