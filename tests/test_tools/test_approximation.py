"""The comparison of approximations, at tiny sizes, on a tiny model."""
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from fma_vision import FMALanguageModel  # noqa: E402
from fma_vision.engine import UserError  # noqa: E402
from fma_vision.layers import FMAttention1D  # noqa: E402

HEADS, DIM, LENGTH = 2, 8, 512
CONFIG = '''
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(
    type='fma_vision.LanguageModelTask',
    net=dict(
        type='fma_vision.FMALanguageModel',
        vocab_size=256,
        embed_dims=16,
        depth=4,
        num_heads=2,
        attn=dict(type='FullAttention1D')))
'''


@pytest.fixture
def tool(load_script, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / 'benchmarks'))
    return load_script('benchmarks/approximation.py')


@pytest.fixture
def rivals(tool):
    return sys.modules[tool.rivals.__module__]


@pytest.fixture
def alone(rivals, monkeypatch):
    """As without the packages."""
    for method in rivals.METHODS:
        if method.package:
            name = method.package.replace('-', '_')
            monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def net():
    """Full attention whose weights are not as small as before training."""
    model = FMALanguageModel(
        vocab_size=256,
        embed_dims=HEADS * DIM,
        depth=4,
        num_heads=HEADS,
        attn=dict(type='FullAttention1D')).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=.5)
    return model


@pytest.fixture
def files(tmp_path, net):
    """Options that name a config, weights for it, and a text."""
    paths = SimpleNamespace(
        **{name: tmp_path / f'tiny.{name}'
           for name in ('py', 'pth', 'txt')})
    paths.py.write_text(CONFIG)
    torch.save({f'net.{k}': v for k, v in net.state_dict().items()}, paths.pth)
    letters = torch.randint(97, 123, (4 * LENGTH, ))
    paths.txt.write_bytes(bytes(letters.tolist()))
    options = dict(config=paths.py, checkpoint=paths.pth, text=paths.txt)
    return [f'--{k}={v}' for k, v in options.items()
            ] + [f'--length={LENGTH}', '--threads=1']


def test_captured_tensors_give_the_layers_output(tool, net) -> None:
    text = bytes(torch.randint(256, (101, )).tolist())
    outputs = []
    hooks = [
        net.blocks[i].attn.proj.register_forward_hook(
            lambda module, args, out: outputs.append(args[0])) for i in (1, 2)
    ]
    subject, bits = tool.capture(net, text)
    for hook in hooks:
        hook.remove()
    assert not any(b.attn.qkv._forward_hooks for b in net.blocks)
    out = tool.full_attention(subject[:3], True)
    torch.testing.assert_close(out.flatten(2).float(), torch.cat(outputs, -1))
    tokens = torch.tensor(list(text))
    with torch.no_grad():
        logits = net(tokens[None, :-1])[0]
    nats = torch.nn.functional.cross_entropy(logits, tokens[1:])
    assert bits == pytest.approx(float(nats) / math.log(2), rel=1e-5)


@pytest.mark.parametrize('causal', [True, False])
def test_full_attention_and_errors(tool, causal) -> None:
    given = torch.randn(3, 1, 100, 3, 4, dtype=torch.float64).unbind()
    exact = tool.full_attention(given, causal)
    query, key, value = (x.transpose(1, 2) for x in given)
    logits = query @ key.transpose(2, 3) / 2  # 4 channels
    if causal:
        later = torch.ones(100, 100, dtype=torch.bool).triu(1)
        logits = logits.masked_fill(later, -math.inf)
    torch.testing.assert_close(exact,
                               (logits.softmax(-1) @ value).transpose(1, 2))
    out = exact * torch.tensor([1., 1.5, -1.]).view(3, 1)
    assert tool.errors(out.float(), exact) == pytest.approx(
        dict(mean=2.5 / 3, worst=2), abs=1e-6)


@pytest.mark.parametrize('options', [
    dict(cell_size=4, rank=2),
    dict(cell_size=8, rank=1, causal=False),
    dict(cell_size=4, rank=2, causal=False, pool_queries=True)
])
def test_forms_are_what_the_layer_computes(tool, net, options) -> None:
    """The layer on the weights of full attention, without its projection."""
    causal = options.pop('causal', True)
    x = torch.randn(1, 100, HEADS * DIM)
    full = net.blocks[1].attn
    layer = FMAttention1D(
        HEADS * DIM, HEADS, causal=causal, positions='rotary', **options)
    layer.load_state_dict(full.state_dict())
    torch.nn.init.eye_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    projected = full.qkv(x)
    query, key, value = projected.unflatten(-1, (3, HEADS, DIM)).unbind(2)
    at = torch.arange(100)
    subject = tool.Subject(
        tool.rotate(query, at), tool.rotate(key, at), value, projected)
    out = tool.fma(subject, causal, **options)()
    torch.testing.assert_close(out.flatten(2), layer(x))


def off(out, exact) -> float:
    return float((out.double() - exact).abs().max())


@pytest.mark.parametrize('causal', [True, False])
def test_own_rivals_reach_full_attention(tool, rivals, causal) -> None:
    given = torch.randn(3, 1, 32, HEADS, 16).unbind()
    exact = tool.full_attention(given, causal)
    assert off(rivals.sdpa(given, causal)(), exact) < 1e-5
    assert off(rivals.band(given, causal)(), exact) < 1e-5
    assert off(rivals.fields(given, causal, band=32)[0], exact) < 1e-5
    assert off(rivals.band(given, causal, width=5)(), exact) > .1


@pytest.mark.parametrize('causal', [True, False])
def test_h_transformer(tool, rivals, causal) -> None:
    """Of two blocks each sees itself; of four, two see each other.

    The latter with other weights than full attention's: all alike here.
    """
    pytest.importorskip('h_transformer_1d')
    query, key, value = torch.randn(3, 1, 32, HEADS, 16)
    given = causal * query, key, value
    exact = torch.cat([
        tool.full_attention([x[:, half] for x in given], causal)
        for half in (slice(16), slice(16, 32))
    ], 1)
    out = rivals.h_transformer(given, causal, block=16 if causal else 8)()
    assert off(out, exact) < 1e-4


def test_nystromformer(tool, rivals) -> None:
    """As many landmarks as tokens are full attention."""
    pytest.importorskip('nystrom_attention')
    given = torch.randn(3, 1, 32, HEADS, 16).unbind()
    exact = tool.full_attention(given, False)
    for landmarks, least, most in ((32, 0, 1e-4), (8, 1e-2, 10)):
        out = rivals.nystromformer(
            given, False, landmarks=landmarks, iterations=30)()
        assert least <= off(out, exact) <= most


def test_fitted_weights_are_the_best(tool, rivals) -> None:
    given = tuple(torch.randn(3, 1, 60, HEADS, DIM))
    exact = tool.full_attention(given, True)
    near, *far = rivals.fields(given, True)
    out = rivals.fmmformer(given, True, (given, exact))()
    least = (out - exact).square().sum()
    for other in (near, *far, (near + far[0]) / 2, out + .05 * near):
        assert (other - exact).square().sum() > least


def test_compare(tool, load_script, files, alone, tmp_path, monkeypatch,
                 capsys) -> None:
    """Without the packages: their rows are costly, and checked above."""
    monkeypatch.setattr(tool, 'FORMS', ((16, 1), (64, 4), (256, 4)))
    monkeypatch.setattr(tool, 'LINEAR', ((16, 1), ))
    out = tmp_path / 'approximation_cpu.json'
    tool.main([*files, '--repeats', '1', '--out', str(out)])
    found = json.loads(out.read_text())
    assert 'h-transformer-1d cannot be' in capsys.readouterr().out
    assert found['setting']['heads'] == 2 * HEADS
    for mode, part in found['modes'].items():
        rows = {f'{r["family"]}, {r["name"]}': r for r in part}
        # Cells of 256 are too large for this length.
        assert 'FMA, cell 256, rank 4' not in rows
        assert ('FMA, linear, cell 16, rank 1' in rows) == (
            mode == 'bidirectional')
        sdpa = rows['SDPA, all tokens']
        assert sdpa['real']['worst'] < 1e-5
        near, far = (
            rows[f'FMA, {name}']['real']['mean']
            for name in ('cell 64, rank 4', 'cell 16, rank 1'))
        assert 1e-3 < near < far < 1.5
        for row in part:
            assert row['seconds']['median'] > 0 and row['peak_bytes'] > 0
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    page = tables.TABLES['approximation']()
    assert f'{LENGTH:,} tokens' in page
    assert f'| FMA, cell 64, rank 4 | {near:.3f} |' in page


def test_a_wrong_method_is_not_measured(tool, files, alone, tmp_path,
                                        monkeypatch) -> None:
    exact = tool.fma1d

    def wrong(*args, backend, **kwargs):
        kwargs['mass'] = backend == 'naive'
        return exact(*args, backend=backend, **kwargs)

    monkeypatch.setattr(tool, 'fma1d', wrong)
    monkeypatch.setattr(tool, 'FORMS', ((16, 1), ))
    out = tmp_path / 'no.json'
    with pytest.raises(UserError, match='cell 16.*nothing was measured'):
        tool.main([*files, '--out', str(out)])
    assert not out.exists()


def test_refuses(tool, files, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main(['--length', '1000'])
    assert 'must be a power of two' in capsys.readouterr().err
    with pytest.raises(UserError, match='no checkpoint file'):
        tool.main([*files, '--checkpoint', str(tmp_path / 'none.pth')])
    with pytest.raises(UserError, match='at least 3075 bytes'):
        tool.main([*files, '--length', '1024'])
    config = tmp_path / 'other.py'
    config.write_text(CONFIG.replace('FullAttention1D', 'FMAttention1D'))
    with pytest.raises(UserError, match='FullAttention1D .*is allowed'):
        tool.build(str(config), str(tmp_path / 'tiny.pth'))
