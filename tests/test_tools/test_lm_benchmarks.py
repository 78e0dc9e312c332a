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
    *rows, floor = found['streaming']['rows']
    assert floor['model'] == 'linear layers'
    ours = [row for row in rows if row['model'] == 'shipped']
    full = [row for row in rows if row['model'] == 'full attention']
    assert [row['context'] for row in ours] == [128, 256, 1024, 4096]
    # A warm-up and a sample of 64 steps each.
    assert ours[-1]['state_tokens'] == 4096 + 2 * 64
    # Keys and values of 4 layers, 256 channels, float32.
    assert ours[-1]['cache_bytes'] == 4224 * 2 * 4 * 256 * 4
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


def test_language_model_refuses(load_script, monkeypatch):
    from fma_vision.engine import UserError
    module = load_script('benchmarks/language_model.py')
    net = module.drawn()
    assert module.check(net, 'nano', 53) < 1e-4
    step = net.step

    def forgetful(token, state):
        return step(token, state)[0], state

    monkeypatch.setattr(net, 'step', forgetful)
    with pytest.raises(UserError, match='differs from the parallel form'):
        module.check(net, 'nano', 53)


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
