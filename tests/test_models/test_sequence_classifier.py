"""The sequence classifier: against plain sums, padding, modes, weights."""

import pytest
import torch
import torch.nn.functional as F
from test_registry import BLOCK_OPENMMLAB

from fma_vision.models import FMASequenceClassifier, PooledHead

SMALL = dict(
    vocab_size=15,
    num_classes=10,
    embed_dims=16,
    depth=2,
    num_heads=2,
    mlp_ratio=2.,
    positions='learned',
    max_length=160)
SHARED = dict(type='hierarchical', shared=True)
LAYERS = {
    'fma':
    dict(type='FMAttention1D', cell_size=4, rank=2, summaries=SHARED),
    'fma avg':
    dict(type='FMAttention1D', cell_size=4, summaries='avg'),
    'fma linear':
    dict(
        type='FMAttention1D',
        cell_size=4,
        rank=2,
        summaries=SHARED,
        pool_queries=True),
    'full':
    dict(type='FullAttention1D'),
    'fmmformer':
    dict(type='FMMformerAttention1D', band=5),
}


def build(name: str, **kwargs) -> FMASequenceClassifier:
    """A float64 model whose learned offsets and weights are not at rest."""
    torch.manual_seed(0)
    model = FMASequenceClassifier(**{**SMALL, 'attn': LAYERS[name], **kwargs})
    for key, param in model.named_parameters():
        if any(part in key for part in model.no_decay_keys):
            torch.nn.init.normal_(param, std=.2)
        elif param.ndim > 1:
            torch.nn.init.normal_(param, std=.3)
    return model.double().eval()


def sequences(*lengths: int) -> list:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(15, (n, ), generator=generator) for n in lengths]


def padded(rows: list, width: int, fill: int = 3) -> tuple:
    tokens = torch.full((len(rows), width), fill)
    key_mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = row
        key_mask[i, :len(row)] = True
    return tokens, key_mask


@pytest.mark.parametrize('positions', ['learned', 'rotary'])
@pytest.mark.parametrize('name', LAYERS)
def test_padding_changes_no_logit(name: str, positions: str) -> None:
    """Alone or in a batch: outputs, and gradients of every weight."""
    model = build(name, positions=positions)
    rows = sequences(1, 3, 8, 9, 37, 64, 101)
    alone = torch.cat([model(row[None]) for row in rows])
    alone.square().sum().backward()
    expected = {k: p.grad.clone() for k, p in model.named_parameters()}
    for width in (101, 160):
        model.zero_grad()
        logits = model(*padded(rows, width))
        torch.testing.assert_close(logits, alone, rtol=1e-9, atol=1e-9)
        logits.square().sum().backward()
        for key, param in model.named_parameters():
            torch.testing.assert_close(
                param.grad, expected[key], rtol=1e-8, atol=1e-9, msg=key)


@pytest.mark.parametrize('name', LAYERS)
def test_what_is_masked_may_hold_anything(name: str, monkeypatch) -> None:
    """NaN in the features of padding reaches no logit and no gradient."""
    model = build(name)
    rows = sequences(5, 30, 41)
    tokens, key_mask = padded(rows, 50)
    clean = model(tokens, key_mask)
    clean.sum().backward()
    expected = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    embed = model.embed_tokens
    monkeypatch.setattr(
        model, 'embed_tokens',
        lambda tokens, at: embed(tokens, at).masked_fill(
            ~key_mask[..., None], torch.nan))
    logits = model(tokens, key_mask)
    torch.testing.assert_close(logits, clean, rtol=0, atol=0)
    logits.sum().backward()
    for key, param in model.named_parameters():
        torch.testing.assert_close(param.grad, expected[key], msg=key)


def test_head_is_a_mean_over_real_tokens() -> None:
    head = PooledHead(6, 4, hidden_dims=5).double()
    torch.nn.init.normal_(head.norm.bias)  # what masked tokens would add
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    key_mask = torch.tensor([[1] * 7, [1, 0, 1, 0, 0, 0, 1], [0] * 7]).bool()
    found = head(x.masked_fill(~key_mask[..., None], torch.nan), key_mask)
    for i in range(3):
        total, count = torch.zeros(6, dtype=torch.float64), 0
        for j in range(7):
            if key_mask[i, j]:
                centred = x[i, j] - x[i, j].mean()
                scale = (centred.square().mean() + head.norm.eps).sqrt()
                total += centred / scale + head.norm.bias
                count += 1
        first, _, _, last = head.mlp
        hidden = F.gelu(first.weight @ (total / max(count, 1)) + first.bias)
        torch.testing.assert_close(found[i], last.weight @ hidden + last.bias)
    torch.testing.assert_close(head(x[:1]), found[:1])
    with pytest.raises(ValueError, match='num_classes must be at least 1'):
        PooledHead(6, 0)


def test_sees_both_sides_and_learns() -> None:
    """The first token decides; a few dozen steps find that out."""
    model = build('fma').float().train()
    tokens, key_mask = padded(sequences(*range(8, 40)), 40)
    labels = tokens[:, 0] % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = F.cross_entropy(model(tokens, key_mask), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < .1


def test_modes_and_the_librarys_metric() -> None:
    pytest.importorskip('mmengine')
    metrics = pytest.importorskip('mmpretrain.evaluation')
    from fma_vision.models.sequence import SequenceClassifierTask
    task = SequenceClassifierTask(
        dict(
            type='fma_vision.FMASequenceClassifier',
            **SMALL,
            attn=LAYERS['fma'])).eval()
    tokens, key_mask = padded(sequences(9, 30, 5, 60), 60)
    logits = task(tokens, key_mask)
    # The third is told a class that is not the likeliest.
    labels = logits.argmax(-1)
    labels[2] = logits[2].argmin()
    batch = dict(tokens=tokens, key_mask=key_mask, labels=labels)
    loss = task(**batch, mode='loss')['loss']
    expected = -logits.log_softmax(-1)[range(4), labels].mean()
    torch.testing.assert_close(loss, expected)
    found = task.test_step(batch)
    torch.testing.assert_close(
        torch.stack([s['pred_score'] for s in found]), logits.softmax(-1))
    metric = metrics.Accuracy()
    metric.process(batch, found)
    assert metric.evaluate(4) == {'accuracy/top1': 75.}
    assert 'gt_label' not in task(tokens, mode='predict')[0]
    with pytest.raises(ValueError, match="got 'guess'"):
        task(tokens, mode='guess')
    with pytest.raises(ValueError, match='labels must be given'):
        task(tokens, mode='loss')


def test_refuses_what_does_not_fit() -> None:
    model = build('fma')
    with pytest.raises(ValueError, match='learned positions reach 160'):
        model(torch.zeros(1, 161, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'tokens must be in \[0, 14\]'):
        model(torch.full((1, 4), 15))


def test_works_with_torch_and_timm_only(run_python) -> None:
    result = run_python(BLOCK_OPENMMLAB + '''
import torch
from fma_vision.models import FMASequenceClassifier

model = FMASequenceClassifier(13, 4, 16, num_heads=2, cell_size=4).eval()
model(torch.randint(13, (2, 40))).sum().backward()
print('done')
''')
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == 'done\n'
