"""demo/lm_demo.py: texts of tiny models, and every kind of bad input.

Most tests call ``main`` in this process; what only a fresh process shows
comes at the end.
"""

import io
import re
import signal
import subprocess
import sys
from itertools import islice

import pytest
import torch
from evil import spoil
from synthetic import small_config, write_texts

pytest.importorskip('mmengine', reason='the demo reads configs')

# All of the default prompt, of PARAGRAPH, and two that ASCII has not.
SYMBOLS = ''.join(map(chr, range(32, 127))) + '\né🙂'
SHIPPED = 'demo/weights/fma-lm-nano_books.pth'

CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['fma_vision.models'],
                      allow_failed_imports=False)
model = dict(
    type='fma_vision.LanguageModelTask',
    net=dict(
        type='fma_vision.FMALanguageModel', embed_dims=16, depth=2,
        num_heads=2, cell_size=4, rank=2, {settings}))
"""
MODELS = dict(
    characters=f'vocab_size={len(SYMBOLS)}',
    bytes='vocab_size=256',
    full="vocab_size=256, attn=dict(type='FullAttention1D')",
    masked="vocab_size=256, causal=False, head=dict(objective='masked')",
    short="vocab_size=256, positions='learned', max_length=30",
)


def vocabulary_of(name):
    from fma_vision.datasets.vocabulary import (ByteVocabulary,
                                                CharacterVocabulary)
    return CharacterVocabulary(SYMBOLS) if name == 'characters' else \
        ByteVocabulary()


@pytest.fixture(scope='module')
def demo(load_script):
    return load_script('demo/lm_demo.py')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """For each name a config and random weights, as training saves them."""
    from fma_vision.engine.build import build_model, load_model_config
    folder = tmp_path_factory.mktemp('models')
    for name, settings in MODELS.items():
        config = folder / f'{name}.py'
        config.write_text(CONFIG.format(settings=settings))
        task = build_model(load_model_config(str(config)))
        torch.manual_seed(1)
        for parameter in task.parameters():
            torch.nn.init.normal_(parameter, std=.3)
        vocabulary = vocabulary_of(name)
        meta = dict(
            vocab_size=vocabulary.vocab_size, vocabulary=vocabulary.state())
        torch.save(
            dict(
                state_dict=task.half().state_dict(),
                meta=dict(dataset_meta=meta)), folder / f'{name}.pth')
    return folder


@pytest.fixture
def run(demo, models, capsys, monkeypatch):
    """Runs the demo; returns its exit status, stdout and stderr."""

    def call(*args,
             model='characters',
             config=None,
             checkpoint=None,
             lines=''):
        monkeypatch.setattr(sys, 'stdin', io.StringIO(lines))
        status = demo.main([
            str(config or models / f'{model}.py'),
            str(checkpoint or models / f'{model}.pth'), '--device', 'cpu',
            *map(str, args)
        ])
        return (status, *capsys.readouterr())

    return call


def expected(demo, models, prompt, count, model='characters', **options):
    """The continuation by ``generate``, without a last half character."""
    net, vocabulary = demo.load_model(
        str(models / f'{model}.py'), str(models / f'{model}.pth'), 'cpu')
    tokens = net.generate(vocabulary.encode(prompt), count, **options)[0]
    pieces = vocabulary.decode_stream(tokens.tolist())
    return ''.join(islice(pieces, len(tokens)))


def saved_with(models, path, name='characters', **changes):
    """A checkpoint with some entries replaced."""
    saved = torch.load(models / f'{name}.pth')
    saved.update(changes)
    torch.save(saved, path)
    return path


# ------------------------------------------------------------- it works


@pytest.mark.parametrize('model', ['characters', 'bytes', 'full'])
def test_writes_what_generate_does(demo, run, models, model):
    prompt = 'The old house. ' * 7  # several levels of cells of four
    status, out, err = run(
        '--prompt',
        prompt,
        '--max-new-tokens',
        150,
        '--seed',
        5,
        '--top-k',
        40,
        '--top-p',
        .95,
        '--temperature',
        .7,
        model=model)
    assert status == 0
    assert out == expected(
        demo,
        models,
        prompt,
        150,
        model,
        seed=5,
        top_k=40,
        top_p=.95,
        temperature=.7) + '\n'
    assert err.startswith(prompt)  # so that a terminal shows one text


@pytest.mark.parametrize('model', ['bytes', 'full'])
def test_state_line(run, model):
    _, _, err = run(
        '--prompt',
        'x' * 400,
        '--max-new-tokens',
        21,
        '--seed',
        3,
        model=model)
    found = re.search(
        r'x\[read 400 tokens in \d+\.\d\d s, wrote 21 at \d+ tokens/s; '
        r'context 420 tokens: state (\d+\.\d\d) MB, full KV cache '
        r'(\d+\.\d\d) MB; seed 3\]\n$', err)
    assert found, err
    state, cache = map(float, found.groups())
    assert cache == round(2 * 2 * 420 * 16 * 4 / 1e6, 2)
    assert state == cache if model == 'full' else state < cache / 5


def test_seed_decides(run):
    call = ('--prompt', 'It was', '--max-new-tokens', 40)
    first = run(*call, '--seed', 1)
    assert run(*call, '--seed', 1)[1] == first[1]
    assert run(*call, '--seed', 2)[1] != first[1]
    # Without one, the line says which repeats the text.
    _, out, err = run(*call)
    seed = re.search(r'seed (\d+)\]', err).group(1)
    assert run(*call, '--seed', seed)[1] == out
    assert run(*call)[1] != out


def test_default_prompt_is_of_common_characters(demo, run):
    from fma_vision.datasets.vocabulary import CharacterVocabulary
    shakespeare = CharacterVocabulary("\n !$&',-.3:;?" + ''.join(
        chr(65 + i) + chr(97 + i) for i in range(26)))
    assert shakespeare.vocab_size == 65
    shakespeare.check(demo.DEMO_PROMPT)
    status, out, err = run('--max-new-tokens', 5)
    assert status == 0 and len(out) == 6
    assert err.startswith(demo.DEMO_PROMPT)


def test_prompt_file_of_any_length(demo, run, models, tmp_path, monkeypatch):
    """Read in parts, its line ends as they are."""
    prompt = 'One line.\r\nZwölf Boxkämpfer 🙂\n' * 20
    path = tmp_path / 'book.txt'
    path.write_bytes(prompt.encode())
    monkeypatch.setattr(demo, 'READ_AT_ONCE', 64)
    status, out, err = run(
        '--prompt-file',
        path,
        '--max-new-tokens',
        30,
        '--temperature',
        0,
        model='bytes')
    assert status == 0
    assert out == expected(
        demo, models, prompt, 30, 'bytes', temperature=0) + '\n'
    assert err.startswith('...') and prompt[-300:] in err
    assert f'read {len(prompt.encode())} tokens' in err


def test_terminal_shows_how_far_it_has_read(demo, run, monkeypatch):
    monkeypatch.setattr(demo, 'READ_AT_ONCE', 40)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    _, _, err = run('--prompt', 'a' * 100, '--max-new-tokens', 2)
    assert [part for part in err.split('\r') if 'of 100' in part] == [
        'read 33% of 100 tokens', 'read 67% of 100 tokens',
        'read 100% of 100 tokens'
    ]


@pytest.mark.parametrize('stop', ['e', 'the end', 'a🙂'])
@pytest.mark.parametrize('size', [1, 2, 5])
def test_stop_ends_the_text(demo, stop, size):
    text = 'So comes th the a🙂then the end. And the end'
    pieces = [text[i:i + size] for i in range(0, len(text), size)]
    end = text.index(stop) + len(stop)
    assert ''.join(demo.until(iter(pieces), stop)) == text[:end]
    assert ''.join(demo.until(iter(pieces), 'no such')) == text
    assert ''.join(demo.until(iter(pieces), None)) == text


def test_stop_option(run):
    call = ('--prompt', 'It was', '--max-new-tokens', 60, '--seed', 1)
    text = run(*call)[1]
    stop = text[20:22]
    _, out, err = run(*call, '--stop', stop)
    assert out == text[:text.index(stop) + 2] + '\n'
    assert f'wrote {len(out) - 1} ' in err


def test_half_a_character_is_never_shown(demo):
    """A model that draws the bytes of one character over and over."""
    from fma_vision.datasets.vocabulary import ByteVocabulary
    from fma_vision.models.lm import FMALanguageModel
    model = FMALanguageModel(256, 16, 1, 2, 4, 2).eval()
    data = '🙂'.encode()
    cycle = dict(zip(data, data[1:] + data[:1]))

    def logits(x):
        nonlocal last
        last = cycle[last]
        return torch.nn.functional.one_hot(torch.tensor([last]), 256).float()

    last, model.logits = data[-1], logits
    writer = demo.Writer(model, ByteVocabulary(), 0, dict(temperature=0))
    writer.read(torch.tensor([65]))
    assert list(writer.write(5)) == ['', '', '', '🙂', '']
    # The next call shows the character that this one began.
    assert list(writer.write(4)) == ['', '', '🙂', '']


# ---------------------------------------------------------- interactive


def reports(err):
    """(read, written, context) of every state line."""
    return [
        tuple(map(int, found)) for found in re.findall(
            r'read (\d+) tokens .* wrote (\d+) at .* context (\d+) ', err)
    ]


def test_interactive_session(demo, run, models):
    options = dict(temperature=0)
    call = ('--interactive', '--max-new-tokens', 20, '--temperature', 0)
    status, out, err = run(
        *call, lines='It was\n\nHe said\n and then\n/quit\nnever\n')
    assert status == 0
    assert err.startswith(demo.HELP + '\n> ')
    text = 'It was'
    answer = ''
    for line, parts in (('', 2), ('\n\nHe said', 1), (' and then', 1)):
        text += line
        new = expected(demo, models, text, 20 * parts, **options)
        answer += ''.join(new[20 * i:20 * i + 20] + '\n' for i in range(parts))
        text += new
    assert out == answer
    # The last letter of a turn is read with what follows.
    assert reports(err) == [(6, 20, 25), (0, 20, 45), (9, 20, 74),
                            (9, 20, 103)]


def test_interactive_goes_on_from_a_prompt(run):
    call = ('--max-new-tokens', 25, '--seed', 9, '--prompt', 'It was')
    _, out, err = run(*call, '--interactive', lines='\n')
    assert reports(err) == [(6, 25, 30), (0, 25, 55)]
    whole = run('--max-new-tokens', 50, *call[2:])[1]
    assert out == whole[:25] + '\n' + whole[25:]


def test_reset_and_help(demo, run):
    call = ('--interactive', '--max-new-tokens', 8, '--temperature', 0)
    status, out, err = run(*call, lines='\nIt was\n/reset\n\n/help\nIt was\n')
    assert status == 0
    first, second = out.splitlines()
    assert first == second
    assert reports(err) == [(6, 8, 13)] * 2
    assert err.count(demo.HELP) == 4  # nothing to go on from, twice


def test_interactive_survives_unknown_characters(run):
    status, out, err = run(
        '--interactive', '--max-new-tokens', 8, lines='привет\nIt was\n')
    assert status == 0 and len(out) == 9
    assert err.count('error: ') == 1
    assert '6 characters are not among the 98' in err


# -------------------------------------------------------- other sources


def test_tokenizer(demo, run, models, tmp_path, monkeypatch):
    tokenizers = pytest.importorskip('tokenizers')
    from fma_vision.datasets.vocabulary import TokenizerVocabulary
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator([demo.DEMO_PROMPT],
                              tokenizers.trainers.BpeTrainer(
                                  vocab_size=256,
                                  show_progress=False,
                                  initial_alphabet=alphabet))
    vocabulary = TokenizerVocabulary(model.to_str())
    assert vocabulary.vocab_size == 256
    path = saved_with(
        models,
        tmp_path / 'tokens.pth',
        'bytes',
        meta=dict(dataset_meta=dict(vocabulary=vocabulary.state())))
    call = ('--prompt', 'house and 🙂', '--max-new-tokens', 30)
    status, out, _ = run(
        *call, '--temperature', 0, model='bytes', checkpoint=path)
    assert status == 0 and out
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    status, out, err = run(*call, model='bytes', checkpoint=path)
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert 'needs the package tokenizers: pip install tokenizers' in err


@pytest.mark.slow
@pytest.mark.parametrize('parts', [[], ['full']], ids=str)
def test_checkpoint_of_the_training_tool(load_script, run, repo_root, tmp_path,
                                         parts):
    write_texts(tmp_path / 'data')
    source, = repo_root.glob('configs/lm/fma-lm-mini*tinyshakespeare*.py')
    folder = repo_root / 'configs/_base_/attention'
    config = small_config(source, tmp_path, tmp_path / source.name,
                          [folder / f'{part}.py' for part in parts])
    tool = load_script('tools/train.py')
    tool.train(
        tool.parse_args([
            str(config), '--work-dir',
            str(tmp_path / 'work'), '--device', 'cpu'
        ]))
    status, out, err = run(
        '--prompt',
        'THE CAT SAT',
        '--max-new-tokens',
        12,
        config=config,
        checkpoint=tmp_path / 'work' / 'iter_2.pth')
    assert status == 0, err
    assert len(out.splitlines()[-1]) == 12  # below the log of the training


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize('args, words', [
    (['--temperature', '-1'], 'temperature must be at least 0 and finite'),
    (['--temperature', 'nan'], '--temperature, --top-k, --top-p or --seed'),
    (['--temperature', 'hot'], "--temperature: invalid float value: 'hot'"),
    (['--top-k', '0'], 'top_k must be at least 1, got 0'),
    (['--top-p', '1.5'], 'top_p must be in (0, 1], got 1.5'),
    (['--seed', '9' * 30], '--temperature, --top-k, --top-p or --seed'),
    (['--max-new-tokens', '0'], '--max-new-tokens is 0, must be at least 1'),
    (['--stop', ''], '--stop is empty'),
    (['--prompt', ''], '--prompt is empty'),
    (['--prompt', 'a', '--prompt-file', 'b'], 'not allowed with argument'),
    (['--prompt', 'Привет'], "6 characters are not among the 98 of the"),
    (['--prompt-file', 'nowhere.txt'], 'No such file or directory'),
    (['--prompt-file', '.'], 'Is a directory'),
    (['--device', 'abacus'], "--device 'abacus' cannot be used"),
    (['--weights', 'a'], 'unrecognized arguments: --weights a'),
])
def test_bad_arguments(run, args, words):
    status, out, err = run(*args)
    assert (status, out, err.count('\n')) == (2, '', 1), err
    assert err.startswith('error: ') and words in err


def test_config_without_checkpoint(demo, capsys):
    assert demo.main(['config.py']) == 2
    assert 'CONFIG and CHECKPOINT belong together' in capsys.readouterr().err


@pytest.mark.parametrize('content, words', [
    (b'', 'is empty'),
    (b'caf\xe9', 'cannot be read: it is not UTF-8'),
])
def test_bad_prompt_file(run, tmp_path, content, words):
    path = tmp_path / 'prompt.txt'
    path.write_bytes(content)
    status, out, err = run('--prompt-file', path)
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert str(path) in err and words in err


def test_bad_config(run, tmp_path):
    path = tmp_path / 'config.py'
    for content, words in ((None, 'no such file'), ('model = dict(',
                                                    'cannot be read'),
                           ('lr = 1', 'holds no `model`'),
                           ("model = dict(type='Nothing')",
                            "config's model does not build"),
                           ("model = dict(type='ToyModel')\n",
                            'is of no language model')):
        if content is not None:
            path.write_text(content)
        with toy_model():
            status, out, err = run(config=path)
        assert (status, out, err.count('\n')) == (2, '', 1), err
        assert words in err


def toy_model():
    """A registered model that writes no text, while the context lasts."""
    from contextlib import contextmanager

    from mmengine.registry import MODELS as REGISTRY

    @contextmanager
    def registered():
        REGISTRY.register_module(
            name='ToyModel', module=type('Toy', (torch.nn.Identity, ), {}))
        try:
            yield
        finally:
            REGISTRY.module_dict.pop('ToyModel')

    return registered()


def test_masked_model(run):
    status, out, err = run(model='masked')
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert 'masked language model (causal=False)' in err


def test_bad_checkpoint(run, models, tmp_path):
    path = tmp_path / 'weights.pth'
    meta = torch.load(models / 'characters.pth')['meta']
    for checkpoint, words in (
        ('nowhere.pth', 'no checkpoint file nowhere.pth'),
        (models / 'bytes.pth', 'does not match the config'),
        (models / 'full.pth', 'does not match the config'),
        (b'PK\x03\x04', 'is damaged'),
        (dict(meta={}), 'keeps no vocabulary'),
        (dict(meta=[1]), 'keeps no vocabulary'),
        (dict(meta=dict(dataset_meta=dict(vocabulary='bytes'))),
         'keeps no vocabulary'),
        (dict(meta=dict(dataset_meta=dict(vocabulary=dict(type='runes')))),
         "type 'runes'; allowed are"),
        (dict(meta=dict(dataset_meta=dict(vocabulary=dict(type='bytes')))),
         'a vocabulary of 256 tokens, the model has 98'),
        (dict(meta=meta, state_dict=dict(a=1)), 'holds no weights'),
    ):
        if isinstance(checkpoint, bytes):
            path.write_bytes(checkpoint)
        elif isinstance(checkpoint, dict):
            saved_with(models, path, **checkpoint)
        given = path if isinstance(checkpoint, (bytes, dict)) else checkpoint
        status, out, err = run(checkpoint=given)
        assert (status, out, err.count('\n')) == (2, '', 1), err
        assert words in err


def test_checkpoint_never_runs_code(run, models, tmp_path):
    path = spoil(models / 'characters.pth', tmp_path / 'evil.pth',
                 tmp_path / 'proof')
    status, _, err = run(checkpoint=path)
    assert status == 2 and 'holds code besides weights' in err
    assert not (tmp_path / 'proof').exists()


def test_end_of_the_positions(run):
    """Found while writing: what could be written stands."""
    status, out, err = run(
        '--prompt', 'a' * 20, '--max-new-tokens', 30, model='short')
    assert status == 2 and out
    assert err.splitlines()[-1].endswith(
        'learned positions reach 30 tokens, got 31')


# ----------------------------------------------------- in a fresh process


@pytest.fixture
def command(models, repo_root):
    """The command line of the demo with the model of bytes."""
    return [
        sys.executable, repo_root / 'demo' / 'lm_demo.py', models / 'bytes.py',
        models / 'bytes.pth', '--device', 'cpu', '--seed', '1'
    ]


def test_fresh_process_is_clean(command, tmp_path):
    """Nothing but the text, the prompt and the state line."""
    result = subprocess.run(
        [*command, '--prompt', 'It was', '--max-new-tokens', '9'],
        cwd=tmp_path,
        capture_output=True)
    assert result.returncode == 0
    assert re.fullmatch(rb'It was\[read 6 tokens .*; seed 1\]\n',
                        result.stderr)
    assert result.stdout.endswith(b'\n')


@pytest.mark.slow
def test_broken_pipe_ends_quietly(command):
    process = subprocess.Popen(
        [*command, '--prompt', 'It was', '--max-new-tokens', '100000'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b'It was'
    assert process.wait(60) == 0


@pytest.mark.slow
def test_interrupt_ends_quietly(command):
    process = subprocess.Popen(
        [*command, '--prompt', 'It was', '--max-new-tokens', '100000'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background job of a shell inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b'It was\n'


@pytest.mark.slow
def test_text_that_is_not_utf8_is_refused_line_by_line(command):
    result = subprocess.run(
        [*command, '--interactive', '--max-new-tokens', '4'],
        input=b'caf\xe9\nIt was\n',
        env=dict(PYTHONUTF8='1', OMP_NUM_THREADS='1'),
        capture_output=True)
    assert result.returncode == 0
    assert result.stderr.count(b'error: the model cannot read this') == 1
    assert len(reports(result.stderr.decode())) == 1


def test_shipped_weights(repo_root, tmp_path):
    """English words from a sentence that nobody trained on."""
    if not (repo_root / SHIPPED).is_file():
        pytest.skip(f'{SHIPPED} is not there')
    assert (repo_root / SHIPPED).stat().st_size < 8e6
    result = subprocess.run(
        [
            sys.executable, repo_root / 'demo' / 'lm_demo.py', '--device',
            'cpu', '--seed', '1', '--max-new-tokens', '400'
        ],
        cwd=tmp_path,  # paths must not depend on where one stands
        capture_output=True,
        text=True)
    assert result.returncode == 0, result.stderr
    words = re.findall('[a-z]+', result.stdout.lower())
    common = 'a and as at be had he her his in it of on she that the to was'
    share = sum(word in common.split() for word in words) / len(words)
    assert share > .15
    assert result.stderr.count('\n') == 1
