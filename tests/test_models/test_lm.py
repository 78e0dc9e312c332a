"""The language model: shapes, losses, masks, and the model around it."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_registry import BLOCK_OPENMMLAB

from fma_vision.models import FMALanguageModel, FMALMHead
from fma_vision.models.lm import mask_tokens
from fma_vision.models.lm.masking import mask_by_content

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(
    vocab_size=13, embed_dims=16, depth=2, num_heads=2, cell_size=4, rank=2)
FORMS = {
    'avg': dict(summaries='avg'),
    'hierarchical': dict(summaries='hierarchical'),
    'shared': dict(summaries=dict(type='hierarchical', shared=True)),
    'conv': dict(summaries='conv'),
    'learned positions': dict(positions='learned', max_length=100),
    'relative': dict(attn=dict(positions='relative')),
    'full': dict(attn=dict(type='FullAttention1D')),
    'bidirectional': dict(causal=False),
}


def _model(**kwargs) -> FMALanguageModel:
    model = FMALanguageModel(**{**SMALL, **kwargs}).double()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=.3)
    return model.eval()


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(13, shape)


# ----------------------------------------------------------------- forward
@pytest.mark.parametrize('name', FORMS)
def test_any_length(name):
    model = _model(**FORMS[name])
    for length in (1, 3, 4, 30, 77):
        logits = model(_tokens(2, length))
        assert logits.shape == (2, length, 13)
        assert logits.isfinite().all()


@pytest.mark.parametrize('name', [n for n in FORMS if n != 'bidirectional'])
def test_prefixes_agree_and_nothing_looks_ahead(name):
    model = _model(**FORMS[name])
    tokens = _tokens(2, 90)
    logits = model(tokens)
    for length in (1, 8, 33, 64):
        torch.testing.assert_close(
            model(tokens[:, :length]), logits[:, :length])
    changed = tokens.clone()
    changed[:, 40] = (tokens[:, 40] + 1) % 13
    other = model(changed)
    torch.testing.assert_close(other[:, :40], logits[:, :40])
    # The last token still sees token 40, through a summary.
    assert (other[:, -1] - logits[:, -1]).abs().max() > 1e-6


def test_shifting_all_rotary_positions_changes_nothing():
    tokens = _tokens(2, 60)
    model = _model()
    torch.testing.assert_close(model(tokens, offset=12345), model(tokens))
    model = _model(positions='learned', max_length=100)
    assert not torch.allclose(model(tokens, offset=5), model(tokens))


@pytest.mark.parametrize('name', ['hierarchical', 'full', 'bidirectional'])
def test_padding_is_absent(name):
    model = _model(**FORMS[name])
    tokens = _tokens(3, 50)
    lengths = [50, 31, 1]
    mask = torch.arange(50) < torch.tensor(lengths)[:, None]
    logits = model(tokens, mask)
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        alone = model(tokens[row:row + 1, :length])[0]
        torch.testing.assert_close(logits[row, :length], alone)


def test_positions_make_order_visible():
    tokens = torch.tensor([[1, 2, 3, 4], [1, 3, 2, 4]])
    for kwargs in (dict(), dict(positions='learned', max_length=4)):
        first, second = _model(**kwargs)(tokens)[:, -1]
        assert (first - second).abs().max() > 1e-6
    first, second = _model(positions='none', depth=1)(tokens)[:, -1]
    torch.testing.assert_close(first, second)


def test_every_parameter_gets_a_gradient():
    for kwargs in FORMS.values():
        for length in (3, 70):
            model = _model(**kwargs)
            # Learned positions beyond the text are one weight.
            model.loss(_tokens(4, length)).backward()
            missing = [
                n for n, p in model.named_parameters() if p.grad is None
            ]
            assert missing == []


def test_scaled_init():
    model = FMALanguageModel(64, depth=8)
    block = model.blocks[3]
    for weight, std in [(model.embed.weight, .02),
                        (block.attn.qkv.weight, .02),
                        (block.mlp.fc1.weight, .02),
                        (block.attn.proj.weight, .02 / 4),
                        (block.mlp.fc2.weight, .02 / 4)]:
        assert float(weight.detach().std()) == pytest.approx(std, rel=.05)
    assert not any(p.any() for n, p in model.named_parameters()
                   if 'delta' in n or n.endswith('bias'))
    # Nothing is known yet: about log(64) nats a token.
    loss = model.loss(torch.randint(64, (2, 200)))
    assert float(loss.detach()) == pytest.approx(math.log(64), rel=.03)
    names = model.no_weight_decay()
    assert 'blocks.3.attn.key_summaries.delta_cell' in names
    assert all(model.no_decay_keys[0] in name for name in names)


def test_checkpointed_blocks_give_the_same_gradients():
    tokens, grads = _tokens(2, 30), []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = _model(with_cp=with_cp).train()
        model.loss(tokens).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_bfloat16_autocast_stays_close():
    model = FMALanguageModel(**SMALL).eval()
    tokens = _tokens(2, 60)
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(tokens)
    torch.testing.assert_close(
        logits.float(), model(tokens), rtol=.05, atol=.02)


# ------------------------------------------------------------------ losses
@pytest.mark.parametrize('tied', [True, False])
def test_causal_loss_by_definition(tied):
    model = _model(head=dict(tied=tied))
    assert any('proj' in n for n, _ in model.head.named_parameters()) != tied
    tokens = _tokens(3, 21)
    log_p = model(tokens).log_softmax(-1)
    next_token = log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    loss = model.loss(tokens)
    torch.testing.assert_close(loss, -next_token.mean())
    # Targets by hand, some of which do not count.
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    targets[0] = -100
    targets[1, 5:9] = -100
    nats, counts = model.nats(tokens, targets)
    assert counts.tolist() == [0, 16, 20]
    next_token[1, 5:9] = 0
    torch.testing.assert_close(nats[1:], -next_token[1:].sum(1))
    assert nats[0] == 0
    # Masked tokens are no targets either.
    mask = torch.arange(21) < torch.tensor([21, 1, 8])[:, None]
    assert model.nats(tokens, None, mask)[1].tolist() == [20, 0, 7]
    assert model.loss(tokens[:, :1]) == 0


def test_chunked_loss_is_the_same():
    tokens, found = _tokens(3, 40), []
    for elements in (2**24, 13 * 7):
        torch.manual_seed(1)
        model = _model(head=dict(chunk_elements=elements))
        loss = model.loss(tokens)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_chunked_loss_holds_few_logits():
    head = FMALMHead(8, 1000, chunk_elements=16000)
    weight = torch.randn(1000, 8, requires_grad=True)
    held = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        held.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        head.loss(
            torch.randn(2, 100, 8), torch.randint(1000, (2, 100)), weight)
    assert max(held) < 16000


def test_masks_by_the_recipe():
    tokens = torch.randint(50, (40, 1000))
    inputs, targets = mask_tokens(tokens, 50, 50)
    chosen = targets != -100
    assert float(chosen.double().mean()) == pytest.approx(.15, abs=.01)
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    hidden = inputs[chosen] == 50
    same = inputs[chosen] == tokens[chosen]
    assert float(hidden.double().mean()) == pytest.approx(.8, abs=.02)
    # 10 %, and one of 50 random tokens is the right one.
    assert float(same.double().mean()) == pytest.approx(.102, abs=.02)
    eligible = torch.zeros_like(chosen)
    eligible[:, :3] = True
    _, targets = mask_tokens(tokens, 50, 50, ratio=1., eligible=eligible)
    assert torch.equal(targets != -100, eligible)


def test_masks_for_evaluation_depend_on_the_text_alone():
    tokens = torch.randint(50, (6, 200))
    options = dict(num_tokens=50, mask_id=50)
    inputs, targets = mask_by_content(tokens, 0, **options)
    again = mask_by_content(tokens.flip(0)[:4], 0, **options)
    assert torch.equal(again[0], inputs.flip(0)[:4])
    assert torch.equal(again[1], targets.flip(0)[:4])
    assert not torch.equal(mask_by_content(tokens, 1, **options)[0], inputs)
    assert not torch.equal(inputs[0] == 50, inputs[1] == 50)
    # What is not eligible has no say.
    real = (torch.arange(tokens.shape[1]) < 20).expand_as(tokens)
    other = torch.where(real, tokens, tokens + 1)
    one, two = (
        mask_by_content(x, 0, num_tokens=50, mask_id=50, eligible=real)[1]
        for x in (tokens, other))
    assert torch.equal(one, two)


def test_masked_model_tells_hidden_tokens():
    model = _model(causal=False, vocab_size=14)
    assert model.head.objective == 'masked' and model.head.mask_id == 13
    tokens = _tokens(3, 60)
    mask = torch.arange(60) < torch.tensor([60, 25, 1])[:, None]
    nats, counts = model.nats(tokens, None, mask)
    inputs, targets = model.head.corrupt(tokens, None, mask, seed=0)
    assert not (targets != -100)[~mask].any()
    assert counts.tolist() == (targets != -100).sum(1).tolist()
    log_p = model(inputs, mask).log_softmax(-1)
    expected = F.nll_loss(
        log_p.flatten(0, 1), targets.flatten(), reduction='none')
    torch.testing.assert_close(nats, expected.view(3, 60).sum(1))
    # What another window has counted is shown, and not asked for.
    known = tokens.masked_fill(torch.arange(60) < 40, -100)
    inputs, targets = model.head.corrupt(tokens, known, seed=0)
    assert torch.equal(inputs[:, :40], tokens[:, :40])
    assert (targets[:, :40] == -100).all() and (targets != -100).any()
    # New tokens are hidden each time it trains.
    assert model.loss(tokens) != model.loss(tokens)
    # No token chosen: a loss of 0 that still has a gradient.
    empty = model.head.loss(
        model.features(tokens), torch.full_like(tokens, -100),
        model.embed.weight)
    assert empty == 0 and empty.requires_grad


@pytest.mark.parametrize('kwargs, message', [
    (dict(vocab_size=0), 'vocab_size and depth must be at least 1'),
    (dict(positions='sine'), "positions must be .* got 'sine'"),
    (dict(positions='learned'), 'learned positions need max_length'),
    (dict(head=dict(objective='masked')), "'masked' does not fit"),
    (dict(causal=False, head=dict(objective='causal')), 'does not fit'),
    (dict(head=dict(objective='next')), "objective must be"),
    (dict(head=dict(mask_ratio=0.)), r'mask_ratio must be in \(0, 1\]'),
    (dict(head=dict(mask_id=13)), 'mask_id must be below vocab_size=13'),
    (dict(head=dict(chunk_elements=0)), 'chunk_elements must be at least 1'),
    (dict(attn=dict(type='Nothing')), "'Nothing' is unknown"),
    (dict(rank=3), 'rank must divide cell_size=4'),
    (dict(attn=dict(causal=False)), 'causal=False, the model has causal=True'),
])
def test_model_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FMALanguageModel(**{**SMALL, **kwargs})


def test_tokens_are_checked():
    model = _model(positions='learned', max_length=10)
    for tokens, kind, message in [
        (torch.zeros(1, 3), TypeError, 'tokens must be integers'),
        (_tokens(3), ValueError, r'tokens must be \[B, N\]'),
        (_tokens(1, 0), ValueError, r'tokens must be \[B, N\]'),
        (torch.tensor([[0, 13]]), ValueError, r'in \[0, 12\], got \[0, 13\]'),
        (torch.tensor([[-1, 2]]), ValueError, 'another vocabulary'),
        (_tokens(1, 11), ValueError, 'learned positions reach 10 tokens'),
    ]:
        for method in (model, model.loss, model.nats):
            with pytest.raises(kind, match=message):
                method(tokens)
    head = FMALMHead(16, 13)
    with pytest.raises(ValueError, match='needs the embedding weight'):
        head(torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match=r'targets must be \(1, 2\)'):
        head.nats(torch.zeros(1, 2, 16), _tokens(1, 3), torch.zeros(13, 16))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32])
def test_any_integers_are_tokens(dtype):
    model, tokens = _model(), _tokens(1, 30)
    narrow = tokens.to(dtype)
    assert torch.equal(model(narrow), model(tokens))
    assert model.loss(narrow, narrow) == model.loss(tokens, tokens)
    _, state = model.prefill(narrow)
    model.step(narrow[:, 0], state)


def test_exported_model_is_the_model():
    model, tokens = _model(), _tokens(1, 50)
    program = torch.export.export(model, (tokens, ))
    torch.testing.assert_close(program.module()(tokens), model(tokens))


def test_attention_by_name():
    model = _model(attn='FullAttention1D')
    assert type(model.blocks[0].attn).__name__ == 'FullAttention1D'


def test_works_with_torch_and_timm_only(run_python):
    result = run_python(BLOCK_OPENMMLAB + '''
import torch
from fma_vision.models import FMALanguageModel

model = FMALanguageModel(13, 16, 2, 2, cell_size=4).eval()
model.loss(torch.randint(13, (2, 40))).backward()
assert model.generate(torch.randint(13, (9, )), 5).shape == (1, 5)
assert not set(sys.modules).intersection(('mmengine', 'mmcv', 'mmseg'))
print('done')
''')
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == 'done\n'


# ---------------------------------------------------------------- MMEngine
def _task(**kwargs):
    registry = pytest.importorskip('mmengine.registry')
    torch.manual_seed(1)
    return registry.MODELS.build(
        dict(
            type='fma_vision.LanguageModelTask',
            net=dict(
                type='fma_vision.FMALanguageModel', **{
                    **SMALL,
                    **kwargs
                })))


def test_task_modes():
    task = _task().eval()
    tokens, targets = _tokens(3, 20), _tokens(3, 20)
    targets[1, :15] = -100
    characters = torch.tensor([25, 7, 20])
    assert task(tokens).shape == (3, 20, 13)
    loss = task(tokens, targets, characters, mode='loss')
    assert list(loss) == ['loss']
    rows = task(tokens, targets, characters, mode='predict')
    assert [r['tokens'] for r in rows] == [20, 5, 20]
    assert [r['characters'] for r in rows] == [25, 7, 20]
    mean = sum(r['nats'] for r in rows) / 45
    assert mean == pytest.approx(float(loss['loss'].detach()), rel=1e-5)
    assert task([*tokens], [*targets], mode='predict')[1]['characters'] == 5
    with pytest.raises(ValueError, match="mode must be .* got 'test'"):
        task(tokens, mode='test')


def test_masked_task_counts_what_it_told():
    task = _task(causal=False).eval()
    batch = dict(
        tokens=_tokens(2, 50) % 12,
        targets=_tokens(2, 50),
        characters=torch.tensor([50, 50]))
    rows = task(**batch, mode='predict')
    assert all(0 < r['tokens'] == r['characters'] < 25 for r in rows)
    # Tokens of three characters each.
    longer = task(
        **{
            **batch, 'characters': torch.tensor([150, 150])
        }, mode='predict')
    assert [r['characters'] for r in longer] == [3 * r['tokens'] for r in rows]
    assert rows == task(**batch, mode='predict')


def test_task_learns_from_collated_windows(tmp_path):
    """A text of one repeated word, up to the registered metric."""
    task = _task(vocab_size=256)
    from mmengine.dataset import default_collate
    from mmengine.optim import OptimWrapper

    from fma_vision.registry import DATASETS, METRICS
    (tmp_path / 'text.txt').write_text('multipole ' * 200)
    options = dict(
        type='fma_vision.TextDataset',
        data_root=str(tmp_path),
        length=64,
        vocabulary='bytes')
    train = DATASETS.build(dict(options, mode='random', samples=320))
    valid = DATASETS.build(dict(options, mode='sequential', split='valid'))
    wrapper = OptimWrapper(torch.optim.AdamW(task.parameters(), lr=2e-2))
    for step in range(40):
        batch = default_collate([train[8 * step + i] for i in range(8)])
        logs = task.train_step(batch, wrapper)
    metric = METRICS.build(dict(type='fma_vision.BitsPerCharacter'))
    task.eval()
    for sample in valid:
        batch = default_collate([sample])
        with torch.no_grad():
            metric.process(batch, task.val_step(batch))
    results = metric.compute_metrics(metric.results)
    # Guessing letters by their frequency costs more than 2 nats.
    assert float(logs['loss'].detach()) < 1.
    assert results['bpc'] < 1.5
    assert results['bpc'] == pytest.approx(
        results['nats'] / math.log(2), rel=1e-5)
