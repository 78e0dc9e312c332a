"""The comparison of approximations, at tiny sizes, on a tiny model."""
# The script's modules lie beside it, and need its folder on the path.
# flake8: noqa: E402

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')
TOOLS = Path(__file__).parents[2] / 'tools/analysis_tools'
sys.path.insert(0, str(TOOLS))

from approximation import fma_forms, rivals
from approximation.measure import errors, full_attention, recovered
from approximation.subjects import (Subject, capture, hide_needle,
                                    middle_layers, read_pieces)

from fma_kernels import fma1d
from fma_vision import FMALanguageModel
from fma_vision.engine import UserError
from fma_vision.layers import FMAttention1D, FMMformerAttention1D

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
train_dataloader = dict(batch_size=1, dataset=dict(length=512))
'''
INSTALLED = {
    family: module
    for family, module in ((rivals.H_TRANSFORMER, 'h_transformer_1d'),
                           (rivals.PERFORMER, 'performer_pytorch'),
                           (rivals.NYSTROMFORMER, 'nystrom_attention'))
}


@pytest.fixture
def tool(load_script):
    return load_script('tools/analysis_tools/compare_approximation.py')


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
def text(tmp_path):
    """Letters in an order that no rule gives."""
    letters = torch.randint(97, 123, (4 * LENGTH, )).tolist()
    path = tmp_path / 'text.txt'
    path.write_bytes(bytes(letters))
    return path


@pytest.fixture
def captured(net):
    tokens = torch.randint(256, (101, ))
    subject, _ = capture(net, tokens[:-1], tokens[1:], (1, 2))
    return tokens[:-1], subject


def random_subject(length=100, causal=True):
    query, key, value = torch.randn(3, 1, length, HEADS, DIM)
    subject = Subject(query, key, value)
    return subject, full_attention(query, key, value, causal)


# ------------------------------------------------------------ subjects


def test_captured_tensors_give_the_layers_output(net, captured):
    tokens, subject = captured
    assert subject.query.shape == (1, 100, 2 * HEADS, DIM)
    outputs = []
    hooks = [
        net.blocks[i].attn.proj.register_forward_hook(
            lambda module, args, out: outputs.append(args[0])) for i in (1, 2)
    ]
    with torch.no_grad():
        net(tokens[None])
    for hook in hooks:
        hook.remove()
    out = scaled_dot_product_attention(
        *subject.heads_first, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(out.flatten(2), torch.cat(outputs, -1))


def test_capture_leaves_the_model_alone(net, captured):
    assert not any(b.attn.qkv._forward_hooks for b in net.blocks)
    assert middle_layers(net) == (1, 2)
    tokens = torch.randint(256, (40, ))
    _, nats = capture(net, tokens[:-1], tokens[1:], (0, ))
    with torch.no_grad():
        logits = net(tokens[None, :-1])[0]
    expected = torch.nn.functional.cross_entropy(logits, tokens[1:])
    assert nats == pytest.approx(float(expected), rel=1e-5)


def test_capture_refuses(net):
    tokens = torch.randint(256, (10, ))
    with pytest.raises(UserError, match='--layers 4: .* blocks 0 to 3'):
        capture(net, tokens[:-1], tokens[1:], (4, ))
    other = FMALanguageModel(vocab_size=256, embed_dims=16, num_heads=2)
    with pytest.raises(UserError, match='must have causal FullAttention1D'):
        capture(other, tokens[:-1], tokens[1:], (0, ))


def test_pieces_do_not_overlap(text):
    first, second = read_pieces(text, LENGTH, 2, seed=3)
    assert abs(first['start'] - second['start']) >= LENGTH
    content = text.read_bytes()
    for piece in (first, second):
        start = piece['start']
        assert bytes(piece['tokens'].tolist()) == \
            content[start:start + LENGTH]
    assert read_pieces(text, LENGTH, 1, seed=3)[0]['start'] == first['start']
    with pytest.raises(UserError, match='3 pieces of 512 bytes, 4 are needed'):
        read_pieces(text, LENGTH, 4, seed=0)
    with pytest.raises(UserError, match='none.txt'):
        read_pieces(text.with_name('none.txt'), LENGTH, 1, seed=0)


@pytest.mark.parametrize('causal', [True, False])
def test_needle(causal):
    logit = math.log(256) + 5
    subject = hide_needle(256, HEADS, DIM, seed=1, logit=logit)
    needle = subject.needle
    assert all(32 <= place < 64 for place in needle.positions)
    assert needle.first_query == 192
    logits = torch.einsum('bihd,bjhd->bhij', subject.query,
                          subject.key)[0] * DIM**-.5
    for head, place in enumerate(needle.positions):
        torch.testing.assert_close(logits[head, 192:, place],
                                   torch.full((64, ), logit))
        others = logits[head].clone()
        others[192:, place] = 0
        assert others.abs().max() < logit - 2
    exact = full_attention(subject.query, subject.key, subject.value, causal)
    assert recovered(exact, exact, needle) == 1
    # Of the weight, the needle has nearly all.
    along = (exact[0, 192:] * needle.direction).sum(-1) / DIM**.5
    assert along.min() > .9
    blind = subject.value.clone()
    blind[0, needle.positions, range(HEADS)] = 0
    missed = full_attention(subject.query, subject.key, blind, causal)
    assert abs(recovered(missed, exact, needle)) < 1e-6


# ------------------------------------------------------------- measures


@pytest.mark.parametrize('causal', [True, False])
def test_full_attention(causal, monkeypatch):
    monkeypatch.setattr('approximation.measure.CHUNK', 33)
    subject, exact = random_subject(100, causal)
    given = (
        x.transpose(1, 2).double()
        for x in (subject.query, subject.key, subject.value))
    expected = scaled_dot_product_attention(*given, is_causal=causal)
    torch.testing.assert_close(exact, expected.transpose(1, 2))


def test_errors():
    exact = torch.randn(1, 50, 3, 4, dtype=torch.float64)
    out = exact * torch.tensor([1., 1.5, -1.]).view(3, 1)
    found = errors(out.float(), exact)
    assert found['heads'] == pytest.approx([0, .5, 2], abs=1e-6)
    assert found['mean'] == pytest.approx(2.5 / 3, abs=1e-6)
    assert found['worst'] == pytest.approx(2, abs=1e-6)
    assert found['cosine'] == pytest.approx(1 / 3, abs=1e-6)


# -------------------------------------------------------------- methods


@pytest.mark.parametrize('options', [
    dict(cell_size=4, rank=2),
    dict(cell_size=8, rank=1, causal=False),
    dict(cell_size=4, rank=2, causal=False, pool_queries=True)
])
def test_forms_are_what_the_layer_computes(net, options):
    """The layer on the weights of full attention, without its projection."""
    causal = options.pop('causal', True)
    x = torch.randn(1, 100, HEADS * DIM)
    full = net.blocks[1].attn
    layer = FMAttention1D(
        HEADS * DIM, HEADS, causal=causal, positions='rotary', **options)
    layer.load_state_dict(full.state_dict())
    torch.nn.init.eye_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    query, key, value = full.qkv(x).unflatten(-1, (3, HEADS, DIM)).unbind(2)
    at = torch.arange(100)
    subject = Subject(
        fma_forms.rotate(query, at), fma_forms.rotate(key, at), value, query,
        key)
    out = fma_forms.fma_call(subject, causal, **options)()
    torch.testing.assert_close(out.flatten(2), layer(x))
    # Pooling what is rotated is another form.
    turned = fma_forms.fma_call(subject, causal, turned=True, **options)()
    given = subject.query, subject.key, subject.value
    torch.testing.assert_close(turned, fma1d(*given, causal=causal, **options))
    assert (turned - out).abs().max() > 1e-3


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('pooled', [False, True])
def test_spread_is_the_second_cumulant(turned, pooled):
    """On one far cell, by hand; there it is nearer than the mean alone."""
    length, cell = 24, 4
    query, key = .3 * torch.randn(2, 1, length, HEADS, DIM)
    value = torch.randn(1, length, HEADS, DIM)
    at = torch.arange(length)
    subject = Subject(
        fma_forms.rotate(query, at), fma_forms.rotate(key, at), value, query,
        key)
    options = dict(cell_size=cell, rank=1, pool_queries=pooled, turned=turned)
    out = fma_forms.fma_call(subject, False, spread=True, **options)()
    # Cells of level 1 from the third on are far from the first query's;
    # level 1 holds 6 cells, the top level none but them.
    tree = fma_forms.Hierarchy((length, ), cell)
    assert tree.grids == ((6, ), (3, ))
    source = subject.key if turned else key
    asking = subject.query[0, 0]
    logits, values = [], []
    near = range(2 * cell)
    for token in near:
        logits.append((asking * subject.key[0, token]).sum(-1))
        values.append(value[0, token])
    # Cells 2 and 3 at level 1, tokens 16 to 23 as one cell at level 2.
    for start, width in ((8, 4), (12, 4), (16, 8)):
        part = source[0, start:start + width]
        mean = part.mean(0)
        spread = (part - mean).square().mean((0, 2))
        centre = torch.tensor(start + (width - 1) / 2)
        placed = mean if turned else fma_forms.rotate(mean[None], centre[None])
        ask = asking
        if pooled:
            # The query's own cell of that width starts the text.
            mine = (subject.query if turned else query)[0, :width].mean(0)
            ask = mine if turned else fma_forms.rotate(
                mine[None],
                torch.tensor((width - 1) / 2)[None])[0]
        size = ask.square().sum(-1)
        logits.append((ask * placed.reshape(HEADS, DIM)).sum(-1) +
                      size * DIM**-.5 / 2 * spread + DIM**.5 * math.log(width))
        values.append(value[0, start:start + width].mean(0))
    weights = (torch.stack(logits) * DIM**-.5).softmax(0)
    expected = (weights[..., None] * torch.stack(values)).sum(0)
    torch.testing.assert_close(out[0, 0], expected)


def test_spread_comes_nearer():
    subject, exact = random_subject(512, causal=True)
    options = dict(cell_size=16, rank=1)
    plain, spread = (
        errors(
            fma_forms.fma_call(subject, True, spread=more, **options)(),
            exact)['mean'] for more in (False, True))
    assert spread < .98 * plain


def test_forms_pass_their_check(monkeypatch):
    forms = fma_forms.methods(64)
    assert {form.settings['cell_size'] for form in forms} == {16, 32, 64}
    causal = [form for form in forms if True in form.modes]
    assert not any(form.settings.get('pool_queries') for form in causal)
    form = forms[0]
    assert max(fma_forms.check(form, DIM).values()) < 1e-4

    def off(*args, backend, **kwargs):
        return fma1d(*args, mass=backend == 'naive', backend=backend, **kwargs)

    monkeypatch.setattr(fma_forms, 'fma1d', off)
    assert max(fma_forms.check(form, DIM).values()) > 1e-2


@pytest.mark.parametrize('family', rivals.CHECKS)
def test_others_are_what_they_claim(family):
    if family in INSTALLED:
        pytest.importorskip(INSTALLED[family])
    found = rivals.CHECKS[family](HEADS, 16)
    assert found and max(found.values()) < 1e-4, found


def test_references():
    assert max(rivals.check_references(HEADS, DIM).values()) < 1e-5


@pytest.mark.parametrize('causal', [True, False])
def test_fields_are_those_of_the_layer(causal):
    subject, exact = random_subject(60, causal)
    layer = FMMformerAttention1D(HEADS * DIM, HEADS, causal=causal)
    start = rivals.fmmformer_call(subject, causal)()
    near, *far = rivals.fields(subject, causal)
    expected = layer.field_weights(near, torch.stack(far))
    torch.testing.assert_close(start, expected)
    weights = rivals.fit_fmmformer(subject, exact, causal)
    fitted = rivals.fmmformer_call(subject, causal, weights)()
    best = (fitted - exact).square().sum()
    assert best < (start - exact).square().sum()
    # No step away from the least squares is better.
    for _ in range(5):
        moved = weights + .05 * torch.randn_like(weights)
        out = rivals.fmmformer_call(subject, causal, moved)()
        assert (out - exact).square().sum() > best


def test_pairs_that_h_transformer_covers():
    """By what depends on what, through the package itself."""
    pytest.importorskip('h_transformer_1d')
    length, block = 64, 4
    for causal in (True, False):
        query, key, value = torch.randn(3, 1, length, 1, DIM)
        value.requires_grad_()
        out = rivals.h_transformer_call(
            Subject(query, key, value), causal, block_size=block)()
        seen = torch.stack([
            torch.autograd.grad(row.sum(), value,
                                retain_graph=True)[0].abs().sum((0, 2, 3)) > 0
            for row in out[0]
        ])
        pairs = rivals.h_transformer_pairs(length, block, causal)
        assert torch.equal(seen, pairs), causal


def test_missing_packages_cost_their_rows(monkeypatch):
    for module in INSTALLED.values():
        monkeypatch.setitem(sys.modules, module, None)
    found, missing = rivals.rivals(1)
    assert {method.family for method in found} == {rivals.FMMFORMER}
    assert set(missing) == set(INSTALLED)
    for family, reason in missing.items():
        assert rivals.PACKAGES[family] in reason
        assert "pip install -e '.[compare]'" in reason


# ----------------------------------------------------------- whole tool


@pytest.fixture
def files(tmp_path, text, net):
    """A config and weights for it."""
    config, weights = tmp_path / 'tiny.py', tmp_path / 'tiny.pth'
    config.write_text(CONFIG)
    torch.save({f'net.{k}': v for k, v in net.state_dict().items()}, weights)
    return [
        '--config',
        str(config), '--checkpoint',
        str(weights), '--text',
        str(text), '--length',
        str(LENGTH), '--threads',
        str(torch.get_num_threads())
    ]


def test_compare(tool, load_script, files, tmp_path, monkeypatch, capsys):
    # Without the packages: their rows are costly, and tested above.
    for module in INSTALLED.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(fma_forms, 'PLAIN', ((16, 1), (64, 4), (256, 4)))
    monkeypatch.setattr(fma_forms, 'SPREAD', ((64, 4), ))
    monkeypatch.setattr(fma_forms, 'LINEAR', ((16, 1), ))
    out, plot = tmp_path / 'approximation_cpu.json', tmp_path / 'a' / 'b.png'
    tool.main(
        [*files, '--repeats', '1', '--out',
         str(out), '--plot',
         str(plot)])
    found = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert 'Performer is left out: performer-pytorch cannot be' in printed
    assert found['setting']['heads'] == 2 * HEADS
    assert found['setting']['choice'] != found['setting']['report']
    assert found['model']['layers'] == [1, 2]
    assert set(found['environment']['compared']) == set(
        rivals.PACKAGES.values())
    assert set(found['missing']) == set(INSTALLED)
    assert list(found['modes']) == ['causal', 'bidirectional']
    for mode, part in found['modes'].items():
        rows = {f'{r["family"]}, {r["name"]}': r for r in part['rows']}
        # Cells of 256 are too large for this length.
        assert 'FMA, cell 256, rank 4' not in rows
        assert ('FMA, linear, cell 16, rank 1' in rows) == (
            mode == 'bidirectional')
        sdpa = rows['SDPA, all tokens']
        assert sdpa['real']['worst'] < 1e-5
        assert sdpa['needle']['recovered'] == pytest.approx(1, abs=1e-4)
        near, far = (rows[f'FMA, cell {c}, rank {r}']
                     for c, r in ((64, 4), (16, 1)))
        assert 1e-3 < near['real']['mean'] < far['real']['mean'] < 1.5
        assert near['choice']['mean'] != near['real']['mean']
        fitted, start = (
            rows[f'FMMformer, weights {how}']['real']['mean']
            for how in ('fitted', 'as at the start'))
        assert math.isfinite(fitted) and fitted != start
        for row in rows.values():
            assert len(row['real']['heads']) == 2 * HEADS
            assert row['seconds']['median'] > 0 and row['peak_bytes'] > 0
    assert plot.read_bytes().startswith(b'\x89PNG')
    tables = load_script('benchmarks/tables.py')
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    for name in ('approximation', 'approximation, short'):
        page = tables.TABLES[name]()
        assert 'SDPA, all tokens' in page
        assert f'{LENGTH:,} tokens' in page
    shown = f'{near["real"]["mean"]:.3f}'
    assert f'| FMA, cell 64, rank 4 | {shown} |' in \
        tables.TABLES['approximation']()


def test_errors_alone(tool, files, tmp_path, monkeypatch):
    for module in INSTALLED.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(fma_forms, 'PLAIN', ((16, 1), ))
    monkeypatch.setattr(fma_forms, 'SPREAD', ())
    monkeypatch.setattr(fma_forms, 'LINEAR', ())
    out, plot = tmp_path / 'errors.json', tmp_path / 'no.png'
    tool.main([
        *files, '--no-timing', '--modes', 'causal', '--layers', '0', '--out',
        str(out), '--plot',
        str(plot)
    ])
    found = json.loads(out.read_text())
    assert list(found['modes']) == ['causal'] and not plot.exists()
    assert found['setting']['heads'] == HEADS
    assert 'seconds' not in found['modes']['causal']['rows'][0]


def test_a_wrong_method_is_not_measured(tool, monkeypatch):
    methods = rivals.fmmformer()
    tool.check(methods, HEADS, DIM)
    exact = rivals.banded_attention

    def wider(query, key, value, band, causal):
        return exact(query, key, value, band + 1, causal)

    monkeypatch.setattr(rivals, 'banded_attention', wider)
    with pytest.raises(UserError, match='differs .*nothing was measured'):
        tool.check(methods, HEADS, DIM)


def test_refuses(tool, files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(['--length', '1000'])
    assert 'must be a power of two' in capsys.readouterr().err
    with pytest.raises(UserError, match='no checkpoint file'):
        tool.main([*files, '--checkpoint', str(tmp_path / 'none.pth')])


def row_of(family,
           name,
           seconds,
           error,
           choice=None,
           reference=False,
           **settings):
    return dict(
        family=family,
        name=name,
        seconds=dict(median=seconds),
        reference=reference,
        real=dict(mean=error),
        choice=dict(mean=error if choice is None else choice),
        settings=settings)


def test_verdict(tool):
    others = [
        row_of('A', 'fast', 1., .5),
        row_of('A', 'slow', 9., .2),
        row_of('B', 'only', 3., .4),
        row_of('C', 'only', 5., .9),
        row_of('SDPA', 'all', 99., 0., reference=True)
    ]
    forms = [
        row_of('FMA', 'cheap', 1., .3, choice=.3),
        row_of('FMA', 'fit', 3., .19, choice=.21),
        row_of('FMA', 'lucky', 2., .1, choice=.4),
        row_of('FMA', 'no layer', 2., .02, choice=.02, spread=True),
        row_of('FMA', 'dear', 4., .01, choice=.01)
    ]
    found = tool.verdict(others + forms)
    assert found['budget_seconds'] == 3
    assert found['median_of_all_settings_seconds'] == 4
    # Chosen by the other piece, within the time.
    assert found['chosen'] == 'fit' and found['chosen_error'] == .19
    assert found['nearest_other'] == 'A, slow' and found['reached']
    forms[1]['real']['mean'] = .25
    assert not tool.verdict(others + forms)['reached']
    assert tool.verdict(others + forms[4:])['chosen'] is None
