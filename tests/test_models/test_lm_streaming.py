"""Reading token by token equals reading all at once, from a small state."""

import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fma_kernels import Hierarchy
from fma_kernels.backends.native import block as native_block
from fma_kernels.backends.native import stream as native
from fma_kernels.backends.native.library import unavailable
from fma_vision.models import FMALanguageModel
from fma_vision.models.lm import (LMState, cache_stream, multipole_stream,
                                  sample)
from fma_vision.models.lm.multipole_state import held_cells

pytestmark = pytest.mark.sampled

SMALL = dict(
    vocab_size=13, embed_dims=16, depth=2, num_heads=2, cell_size=4, rank=2)
FORMS = {
    'avg':
    dict(summaries='avg'),
    'avg, rank 1':
    dict(summaries='avg', rank=1),
    'hierarchical':
    dict(summaries='hierarchical'),
    'hierarchical, shared':
    dict(summaries=dict(type='hierarchical', shared=True)),
    'hierarchical, last step reused':
    dict(summaries=dict(type='hierarchical', max_levels=2)),
    'grouped_conv':
    dict(summaries='grouped_conv'),
    'grouped_conv, clipped':
    dict(summaries=dict(type='grouped_conv', max_levels=2)),
    'conv':
    dict(summaries=dict(type='conv', max_levels=3)),
    'one level':
    dict(num_levels=1),
    'two levels':
    dict(num_levels=2, summaries='avg'),
    'no level':
    dict(num_levels=0),
    'no mass':
    dict(attn=dict(mass=False)),
    'learned positions':
    dict(positions='learned', max_length=200),
    'no positions':
    dict(positions='none'),
    'full':
    dict(attn=dict(type='FullAttention1D')),
    'fmmformer':
    dict(attn=dict(type='FMMformerAttention1D', band=7, feature_maps=3)),
    'fmmformer, no positions':
    dict(positions='none', attn=dict(type='FMMformerAttention1D', band=40)),
    'fmmformer, diagonal':
    dict(attn=dict(type='FMMformerAttention1D', band=0)),
}
# 150 tokens are 38 leaf cells of 4: five levels.
LENGTH = 150


def _model(**kwargs) -> FMALanguageModel:
    model = FMALanguageModel(**{**SMALL, **kwargs}).double()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=.3)
    return model.eval().requires_grad_(False)


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(13, shape)


def _steps(model, tokens, state):
    """Logits ``[B, N, vocab]`` of one step after the other."""
    logits = []
    for token in tokens.unbind(1):
        out, state = model.step(token, state)
        logits.append(out)
    return torch.stack(logits, 1), state


# ------------------------------------------------------------------ parity
@pytest.mark.parametrize('name', FORMS)
def test_steps_equal_the_parallel_form(name):
    model, tokens = _model(**FORMS[name]), _tokens(2, LENGTH)
    logits, state = _steps(model, tokens, model.init_state(2))
    torch.testing.assert_close(logits, model(tokens))
    assert state.lengths == (LENGTH, LENGTH)


@pytest.mark.parametrize('name', FORMS)
def test_prefill_equals_the_parallel_form(name):
    """Rows of different lengths, any chunks; then steps from there."""
    model, tokens = _model(**FORMS[name]), _tokens(4, LENGTH)
    lengths, more = [LENGTH, 64, 77, 1], _tokens(4, 20)
    expected = model(tokens)
    for size in (4096, 37, 16):
        logits, state = model.prefill(
            tokens, lengths=lengths, chunk_size=size, return_all=True)
        last, _ = model.prefill(tokens, lengths=lengths, chunk_size=size)
        assert logits.shape == (4, LENGTH, 13)
        assert state.lengths == tuple(lengths)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(logits[row, :length],
                                       expected[row, :length])
            torch.testing.assert_close(last[row], expected[row, length - 1])
            assert not logits[row, length:].any()
        logits, _ = _steps(model, more, state)
        for row, length in enumerate(lengths):
            text = torch.cat([tokens[row, :length], more[row]])
            torch.testing.assert_close(logits[row], model(text[None])[0, -20:])


@pytest.mark.parametrize(
    'name',
    ['hierarchical', 'one level', 'two levels', 'conv', 'full', 'fmmformer'])
@pytest.mark.parametrize('size', [16, 4096])
def test_prefill_goes_on_from_any_state(name, size):
    model, tokens = _model(**FORMS[name]), _tokens(4, 60)
    before, lengths = [60, 60, 23, 16], [50, 9, 41, 50]
    _, state = model.prefill(tokens, lengths=before)
    more = _tokens(4, 50)
    got, after = model.prefill(
        more, state=state, lengths=lengths, chunk_size=size)
    assert after.lengths == (110, 69, 64, 66)
    for row, (old, new) in enumerate(zip(before, lengths)):
        text = torch.cat([tokens[row, :old], more[row, :new]])
        torch.testing.assert_close(got[row], model(text[None])[0, -1])


def test_float32_stays_at_rounding():
    model, tokens = _model().float(), _tokens(2, 600)
    expected = model(tokens)
    logits, _ = _steps(model, tokens, model.init_state(2))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits, _ = model.prefill(tokens, chunk_size=64, return_all=True)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize('watched', [False, True])
@pytest.mark.parametrize('isa', ['portable', 'avx2', 'avx512'])
@pytest.mark.parametrize('name', [
    name for name, kwargs in FORMS.items()
    if 'Attention' not in str(kwargs) and kwargs.get('num_levels') != 0
])
def test_native_call_equals_the_parallel_form(name, isa, watched, monkeypatch):
    """Steps and chunks, rows of different lengths, from C in float32.

    By whole blocks, and, where somebody looks on, by their layers.
    """
    monkeypatch.setenv('FMA_KERNELS_ISA', isa)
    model = _model(**FORMS[name])
    tokens, more = _tokens(3, LENGTH), _tokens(3, 30)
    lengths = [LENGTH, 77, 1]
    expected = model(tokens)
    longer = [
        model(torch.cat([tokens[row, :n], more[row]])[None])[0]
        for row, n in enumerate(lengths)
    ]
    model, calls = model.float(), []

    for module in (native, native_block):

        def counted(entry, call, run=module.run):
            calls.append(entry)
            run(entry, call)

        monkeypatch.setattr(module, 'run', counted)
    seen = []
    if watched:
        for block in model.blocks:
            block.mlp.fc1.register_forward_hook(lambda *args: seen.append(1))
    try:
        model.prefill(tokens[:, :3])
    except ValueError as error:
        pytest.skip(str(error))  # not on this processor
    for size in (4096, 37):
        logits, state = model.prefill(
            tokens, lengths=lengths, chunk_size=size, return_all=True)
        after, _ = _steps(model, more, state)
        for row, length in enumerate(lengths):
            for found, wanted in ((logits[row, :length],
                                   expected[row, :length]),
                                  (after[row], longer[row][-30:])):
                torch.testing.assert_close(
                    found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert len(calls) > 60
    # C adds no sums of full matrices, so that layers are called there.
    whole = 'fma_block' in calls
    assert whole != (watched or name == 'conv') and (len(seen) > 60) == watched


def test_native_call_refuses_another_state():
    """Before C reads beyond it."""
    model = _model().float()
    _, state = model.prefill(_tokens(1, 70))
    stream = multipole_stream.MultipoleStream(model.blocks[0].attn)
    layer, geometry = state.layers[0], stream.geometry
    qkv, ones = torch.zeros(1, 1, 3, 2, 8), torch.ones(1, dtype=torch.int64)
    for name in ('near', 'far', 'sums'):
        x = getattr(layer, name)
        for wrong, kind in ((x[..., :4], ValueError), (x[:, :0], ValueError),
                            (x.double(), TypeError)):
            with pytest.raises(kind, match=f'{name} must'):
                native.attend(qkv, ones, ones, layer._replace(**{name: wrong}),
                              geometry)


def test_half_precision_state_stays_close():
    model, tokens = _model().float(), _tokens(2, 100)
    state = model.init_state(2, torch.bfloat16)
    logits, state = _steps(model, tokens, state)
    torch.testing.assert_close(logits, model(tokens), rtol=.1, atol=.1)
    assert state.nbytes < .7 * _steps(model, tokens,
                                      model.init_state(2))[1].nbytes


def test_every_part_of_the_state_counts():
    """Parity would not notice a part that nobody reads."""
    model, tokens = _model(), _tokens(1, 57)
    _, state = model.prefill(tokens)
    expected, _ = _steps(model, _tokens(1, 1), state)
    more = _tokens(1, 8)
    expected, _ = _steps(model, more, state)
    layer = state.layers[0]
    for name in ('near', 'far', 'sums'):
        changed = layer._replace(**{name: getattr(layer, name) + 1.})
        other = LMState(state.lengths, (changed, *state.layers[1:]))
        logits, _ = _steps(model, more, other)
        assert (logits - expected).abs().max() > 1e-6, name


# ------------------------------------------------------------------- state
def test_slots_hold_what_any_later_query_sees():
    """Against the definition, for every position of a long text."""
    size, length = 2, 300
    tree = Hierarchy((length, ), size, causal=True)
    for level, width in enumerate(tree.widths, 1):
        for at in range(length):
            here = at // width
            held = held_cells(torch.tensor(here)).tolist()
            seen = {
                cell
                for later in range(here, min(here + 4, -(-length // width)))
                for cell, in tree.interaction_list(level, (later, ))
                if cell < here
            }
            assert seen <= set(held), (level, at)
            # No slot is wasted: what is held will be seen, or has been a
            # moment ago.
            assert all(cell >= here - 4 for cell in held)


def test_state_of_fmmformer_does_not_grow():
    model = _model(**FORMS['fmmformer'])
    sizes = set()
    for length in (1, 100, 1000):
        logits, state = model.prefill(_tokens(1, length))
        sizes.add(state.nbytes)
    # 2 layers and heads; keys and values of 7 tokens, 3 maps of sums.
    assert sizes == {2 * 2 * (2 * 7 * 8 + 3 * 8 * 9) * 8}
    # Keys of one precision, sums of float32 at least.
    layer = model.init_state(1, torch.bfloat16).layers[0]
    assert (layer.near.dtype, layer.far.dtype) == (torch.bfloat16,
                                                   torch.float32)


def test_state_grows_like_the_logarithm():
    model = _model(summaries=dict(type='hierarchical', shared=True))
    sizes = []
    for length in (2**7, 2**8, 2**9, 2**10):
        _, state = model.prefill(_tokens(1, length))
        sizes.append(state.nbytes)
        layer = state.layers[0]
        assert layer.near.shape[2] == 8 and layer.sums.shape[2] == 1
    growth = [b - a for a, b in zip(sizes, sizes[1:])]
    # One level more each time: 2 layers, keys and values, 3 cells.
    assert set(growth) == {2 * 2 * 3 * 2 * 16 * 8}
    full = _model(attn=dict(type='FullAttention1D'))
    _, cache = full.prefill(_tokens(1, 2**10))
    assert cache.nbytes == 2 * 2 * 2**10 * 16 * 8
    assert sizes[-1] < cache.nbytes / 10


@pytest.mark.parametrize('name',
                         ['hierarchical', 'one level', 'full', 'fmmformer'])
def test_state_is_saved_branched_and_joined(name):
    model, tokens = _model(**FORMS[name]), _tokens(2, 70)
    _, state = model.prefill(tokens, lengths=[70, 41])
    more = _tokens(2, 30)
    expected, after = _steps(model, more, state)
    # The old state is as it was.
    again, _ = _steps(model, more, state)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded = LMState.from_state_dict(torch.load(file, weights_only=True))
    assert loaded.lengths == state.lengths and loaded.nbytes == state.nbytes
    again, _ = _steps(model, more, loaded)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    # Rows by themselves, in another order, twice.
    branched = state.select([1, 0, 1])
    again, _ = _steps(model, more[[1, 0, 1]], branched)
    torch.testing.assert_close(again, expected[[1, 0, 1]])
    joined = LMState.join([after.select([1]), state.select([0])])
    assert joined.lengths == (71, 70)
    tail = _tokens(2, 3)
    again, _ = _steps(model, tail, joined)
    torch.testing.assert_close(again[0],
                               _steps(model, tail[[0, 0]], after)[0][1])
    assert state.to(torch.float32).nbytes == state.nbytes // 2
    for wrong in (dict(layers=[dict(kind='other')]),
                  dict(state.state_dict(), lengths='x'),
                  dict(layers=[dict(kind='cache', tokens=3)], lengths=[1])):
        with pytest.raises(ValueError, match='not the state of a language'):
            LMState.from_state_dict(wrong)


def test_texts_that_go_on_from_one_cache_do_not_mix():
    """Keys are written behind those of the state, once."""
    model = _model(**FORMS['full'])
    tokens, first, second = _tokens(2, 20), _tokens(2, 30), _tokens(2, 30)
    _, state = model.prefill(tokens)
    before = state.layers[0].tokens.clone()
    texts = [torch.cat([tokens, more], 1) for more in (first, second)]
    wanted = [model(text)[:, 20:] for text in texts]
    branches = [[state, []], [state, []]]
    copies = 0
    for a, b in zip(first.unbind(1), second.unbind(1)):
        for branch, token in zip(branches, (a, b)):
            old = branch[0].layers[0].tokens.data_ptr()
            logits, branch[0] = model.step(token, branch[0])
            branch[1].append(logits)
            copies += branch[0].layers[0].tokens.data_ptr() != old
    for branch, logits in zip(branches, wanted):
        torch.testing.assert_close(torch.stack(branch[1], 1), logits)
    assert torch.equal(state.layers[0].tokens, before)
    assert copies <= 6  # of 60: where texts part, and as they grow
    file = io.BytesIO()
    torch.save(branches[0][0].state_dict(), file)
    assert file.tell() < branches[0][0].nbytes + 4000


def test_native_call_heeds_no_defaults():
    """Memory that C writes is float32 on the CPU, whatever the default."""
    model = _model(**FORMS['hierarchical']).float()
    tokens = _tokens(2, 60)
    expected = model(tokens)[:, 30:]
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device('meta'):
            _, state = model.prefill(tokens[:, :30])
            logits, _ = _steps(model, tokens[:, 30:], state)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


class _Elsewhere(torch.Tensor):
    """Keeps its numbers in another tensor, as quantised weights do."""

    @staticmethod
    def __new__(cls, x):
        return cls._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    def __init__(self, x):
        self.x = x

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].x)
        return func(*(x.x if isinstance(x, cls) else x for x in args),
                    **(kwargs or {}))


def test_weights_that_keep_their_numbers_elsewhere():
    model = _model().float()
    tokens = _tokens(1, 20)
    expected, _ = _steps(model, tokens, model.init_state())
    for block in model.blocks:
        weight = _Elsewhere(block.mlp.fc1.weight.data)
        block.mlp.fc1.weight = torch.nn.Parameter(weight, requires_grad=False)
    logits, _ = _steps(model, tokens, model.init_state())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_other_summaries_between_steps():
    model, other = _model(), _model()
    _, state = model.prefill(_tokens(1, 70))
    for block, source in zip(model.blocks, other.blocks):
        block.attn.key_summaries = source.attn.key_summaries
    fresh = LMState.from_state_dict(state.state_dict())
    tokens = _tokens(1, 20)
    assert torch.equal(
        _steps(model, tokens, state)[0],
        _steps(model, tokens, fresh)[0])


@pytest.mark.parametrize('name', ['hierarchical', 'full', 'fmmformer'])
def test_a_state_leaves_inference_mode(name):
    model = _model(**FORMS[name])
    tokens = _tokens(1, 40)
    with torch.inference_mode():
        _, state = model.step(tokens[:, 30], model.prefill(tokens[:, :30])[1])
    logits, _ = _steps(model, tokens[:, 31:], state)
    torch.testing.assert_close(logits, model(tokens)[:, 31:])


def test_one_of_two_threads_writes_behind_a_cache(monkeypatch):
    """Both look before either writes."""
    model = _model(**FORMS['full'])
    _, state = model.step(_tokens(1), model.prefill(_tokens(1, 20))[1])
    tokens = torch.arange(2)[:, None]
    wanted = [
        model.step(token, LMState.from_state_dict(state.state_dict()))[0]
        for token in tokens
    ]
    ready = threading.Barrier(2)
    claimed = cache_stream._claimed

    def together(room, size):
        try:
            ready.wait(.5)
        except threading.BrokenBarrierError:
            pass
        return claimed(room, size)

    monkeypatch.setattr(cache_stream, '_claimed', together)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda x: model.step(x, state)[0], tokens))
    torch.testing.assert_close(found, wanted)


def test_states_of_two_kinds_do_not_join():
    models = _model(), _model(attn=dict(type='FullAttention1D'))
    states = [model.prefill(_tokens(1, 9))[1] for model in models]
    with pytest.raises(ValueError, match='different models'):
        LMState.join(states)


def test_running_sums_stay_wide():
    model = _model()
    _, state = model.prefill(_tokens(1, 70))
    layer = state.to(torch.float16).layers[0]
    assert layer.near.dtype == torch.float16
    assert layer.sums.dtype == torch.float32


@pytest.mark.parametrize('other', [
    dict(attn=dict(type='FullAttention1D')),
    dict(embed_dims=32),
    dict(num_heads=4),
    dict(summaries='conv'),
])
def test_state_of_another_model_is_refused(other):
    model, other = _model(), _model(**other)
    _, state = other.prefill(_tokens(1, 70))
    with pytest.raises(ValueError, match='it is of another model'):
        model.step(_tokens(1), state)


def test_streaming_refuses():
    model = _model()
    state = model.init_state(2)
    for call, kind, message in [
        (lambda: model.step(_tokens(3), state), ValueError,
         'the state has 2 layers and 2 texts, .* 2 layers and the tokens 3'),
        (lambda: _model(depth=1).step(_tokens(2), state), ValueError,
         'the model 1 layers'),
        (lambda: model.step(_tokens(2, 1), state), ValueError,
         r'token must be \[B\]'),
        (lambda: model.step(torch.tensor([0, 13]), state), ValueError,
         'another vocabulary'),
        (lambda: model.prefill(_tokens(3)), ValueError,
         r'tokens must be \[B, N\]'),
        (lambda: model.prefill(_tokens(2, 3), lengths=[3, 4]), ValueError,
         r'lengths must be 2 numbers in \[1, 3\]'),
        (lambda: model.prefill(_tokens(2, 3), chunk_size=0), ValueError,
         'chunk_size must be at least 1'),
        (lambda: _model(causal=False).init_state(), ValueError,
         'only a causal model'),
        (lambda: _model().train().init_state(), RuntimeError, 'model.eval'),
        (lambda: _model(positions='learned', max_length=5).generate(
            _tokens(4), 3), ValueError, 'learned positions reach 5 tokens'),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_relative_biases_do_not_stream():
    """Every way in says the same; the parallel form works."""
    model = _model(attn=dict(positions='relative'))
    assert model(_tokens(2, 30)).isfinite().all()
    state = _model().init_state(2)
    for call in (lambda: model.init_state(),
                 lambda: model.step(_tokens(2), state),
                 lambda: model.prefill(_tokens(2, 9)),
                 lambda: model.prefill(_tokens(2, 9), state=state),
                 lambda: model.generate(_tokens(4), 3),
                 lambda: next(iter(model.stream(_tokens(4), 3)))):
        with pytest.raises(
                TypeError,
                match="FMAttention1D with positions='relative' has no "
                'streaming form'):
            call()


def test_other_summaries_are_refused_by_name(monkeypatch):
    """One that a user added, which the running sums do not know."""
    from fma_vision.layers import summaries

    class LargestSummaries(summaries._LearnedSummaries):
        level_limit = None

    monkeypatch.setitem(summaries.SUMMARIES, 'largest', LargestSummaries)
    model = FMALanguageModel(**{**SMALL, 'summaries': 'largest'}).eval()
    with pytest.raises(TypeError, match='LargestSummaries are not added'):
        model.generate(torch.zeros(1, 3, dtype=torch.int64), 2)


def test_other_layers_bring_their_own_stream():
    """The protocol for baselines: ``stream()``, or a clear refusal."""

    class Mean(torch.nn.Module):
        causal = True

        def __init__(self, dim, num_heads, **kwargs):
            super().__init__()

        def forward(self, x, key_mask=None):
            count = torch.arange(1, x.shape[1] + 1)[:, None]
            return x.cumsum(1) / count

    model = _model(attn=dict(type=Mean))
    with pytest.raises(TypeError, match='Mean has no streaming form'):
        model.init_state()

    class Stream:

        def room(self, start):
            return None

        def init(self, batch, device, dtype):
            from fma_vision.models.lm.cache_stream import CacheState
            return CacheState(torch.zeros(1, batch, 1, 16, dtype=dtype))

        def __call__(self, x, state, chunk):
            total = state.tokens[0] + x.cumsum(1)
            state = type(state)(total[None, :, -1:])
            return total / (chunk.at + 1)[..., None], state

    Mean.stream = lambda self: Stream()
    tokens = _tokens(2, 9)
    logits, state = model.prefill(tokens[:, :5], return_all=True)
    rest, _ = _steps(model, tokens[:, 5:], state)
    torch.testing.assert_close(torch.cat([logits, rest], 1), model(tokens))


# -------------------------------------------------------------- generation
def test_greedy_text_is_that_of_the_parallel_form():
    model, text = _model(), _tokens(45)
    got = model.generate(text, 40, temperature=0)
    for _ in range(40):
        text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
    assert got.tolist() == [text[45:].tolist()]
    assert torch.equal(model.generate(text[:45], 40, top_k=1), got)
    assert torch.equal(model.generate(text[:45], 40, top_p=1e-9), got)


def test_prompts_of_different_lengths_do_not_mix():
    model = _model()
    prompts = [_tokens(n) for n in (50, 3, 33)]
    together = model.generate(prompts, 30, temperature=0)
    for prompt, row in zip(prompts, together):
        alone = model.generate(prompt, 30, temperature=0)
        assert torch.equal(alone[0], row)


def test_seed_decides():
    model, prompt = _model(), _tokens(2, 20)
    first = model.generate(prompt, 25, temperature=2., seed=3)
    assert torch.equal(
        model.generate(prompt, 25, temperature=2., seed=3), first)
    assert not torch.equal(
        model.generate(prompt, 25, temperature=2., seed=4), first)
    # Without a seed, PyTorch's generator decides.
    torch.manual_seed(0)
    first = model.generate(prompt, 25)
    torch.manual_seed(0)
    assert torch.equal(model.generate(prompt, 25), first)
    stream = model.stream(prompt, 25, temperature=2., seed=3)
    assert next(stream).shape == (2, )


def test_stops_rows_by_themselves():
    model, prompts = _model(), [_tokens(9), _tokens(30)]
    free = model.generate(prompts, 40, seed=1)
    stop = [[int(free[0, 4]), int(free[0, 5])], int(free[1, 12])]
    got = model.generate(prompts, 40, seed=1, stop=stop)
    for row, kept in zip(got, free):
        ends = [
            i + 1 for i in range(40)
            if kept[i] == stop[1] or i and kept[i - 1:i +
                                                1].tolist() == stop[0]
        ]
        end = min(ends)
        assert torch.equal(row[:end], kept[:end])
        assert (row[end:] == -1).all()
    assert got.shape[1] <= 13
    token = int(free[0, 0])
    assert model.generate(prompts, 40, seed=1, stop=token)[0, 1] == -1


def test_sampling_by_definition():
    logits = torch.tensor([[0., 1., 2., 3.]]).log_softmax(-1)
    generator = torch.Generator().manual_seed(0)

    def shares(**kwargs) -> torch.Tensor:
        drawn = sample(logits.expand(20000, -1), generator=generator, **kwargs)
        return torch.bincount(drawn, minlength=4) / 20000

    def check(weights, **kwargs) -> None:
        expected = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(
            shares(**kwargs), expected, rtol=0, atol=.015)

    p = logits.exp()[0].tolist()
    check(p)
    check([w**2 for w in p], temperature=.5)
    check([0., 0., *p[2:]], top_k=2)
    # 0.644 + 0.237 reach 0.8; the likeliest alone reaches 0.6.
    check([0., 0., *p[2:]], top_p=.8)
    check([0., 0., 0., 1.], top_p=.6)
    check([0., 0., 0., 1.], temperature=0)
    check([0., 0., 0., 1.], temperature=1e-320)
    for kwargs in (dict(temperature=-1.), dict(temperature=math.nan),
                   dict(top_k=0), dict(top_p=0.)):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            sample(logits, **kwargs)


def test_generation_refuses():
    model = _model()
    for prompt, kwargs, message in [
        (_tokens(0), dict(), 'none empty'),
        ([_tokens(3), _tokens(0)], dict(), 'none empty'),
        (_tokens(3), dict(max_new_tokens=0), 'max_new_tokens .* got 0'),
        (_tokens(3), dict(stop=[[]]), 'empty sequence'),
        (_tokens(3), dict(stop=-1), r'tokens in \[0, 12\]'),
        (_tokens(3), dict(stop=[[3, 13]]), r'tokens in \[0, 12\]'),
        (None, dict(), 'prompt must be tokens'),
        ('abc', dict(), 'prompt must be tokens'),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, **{'max_new_tokens': 2, **kwargs})
    for stop in ('ab', 3.):
        with pytest.raises(TypeError, match='stop must be a token'):
            model.generate(_tokens(3), 2, stop=stop)
    # Whatever counts as an integer is one.
    for stop in (torch.tensor(3), np.int64(3), [np.int64(3)],
                 torch.tensor([3, 4])):
        model.generate(_tokens(3), 2, stop=stop)
