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


@pytest.mark.slow
def test_language_model(load_script, tables, tmp_path, capsys):
    """A rehearsal of all parts but compilation, and the tables from them."""
    module = load_script('benchmarks/language_model.py')
    module.CHECK_LENGTH = 53
    out = tmp_path / 'language_model_cpu.json'
    parts = ['streaming']
    if (module.ROOT / 'data/books/valid.txt').exists():
        parts.append('precision')
    module.main([
        '--quick', '--threads',
        str(torch.get_num_threads()), '--out',
        str(out), '--parts', *parts
    ])
    found = json.loads(out.read_text())
    rows = found['streaming']['rows']
    ours = [row for row in rows if row['model'] == 'shipped']
    full = [row for row in rows if row['model'] == 'full attention']
    assert [row['context'] for row in ours] == [128, 256, 1024, 4096]
    # A warm-up, a trial and a sample of 64 steps each.
    assert ours[-1]['state_tokens'] == 4096 + 3 * 64
    # Keys and values of 4 layers, 256 channels, float32.
    assert ours[-1]['cache_bytes'] == 4288 * 2 * 4 * 256 * 4
    assert ours[-1]['state_over_cache'] < .2 < full[0]['state_over_cache']
    assert full[0]['state_over_cache'] == 1
    assert all(row['prefill_peak_bytes'] > 0 for row in rows)
    text = tables['language model streaming']()
    assert '| shipped | 4,096 |' in text and 'ms a step' in text
    if 'precision' in found:
        scores = found['precision']['rows'][0]['bits_per_character']
        assert list(scores) == ['float32', 'bfloat16', 'int8']
        assert 1 < scores['float32'] < 4
        assert abs(scores['int8'] - scores['float32']) < .1


def test_language_model_refuses(load_script, repo_root, monkeypatch):
    from fma_vision.engine import UserError
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    module = load_script('benchmarks/language_model.py')
    net = module.drawn()
    assert module.check(net, 'nano', 53) < 1e-4
    step = net.step

    def forgetful(token, state):
        return step(token, state)[0], state

    monkeypatch.setattr(net, 'step', forgetful)
    with pytest.raises(UserError, match='differs from the parallel form'):
        module.check(net, 'nano', 53)


def test_tables_without_results(tables):
    assert tables['language model streaming']() is None
