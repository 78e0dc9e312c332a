"""Windows of a text, its vocabularies, and bits per character."""

import json
import math
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fma_vision.datasets import mapped_text, token_streams
from fma_vision.datasets.mapped_text import MappedText
from fma_vision.datasets.text import TextDataset
from fma_vision.datasets.vocabulary import (ByteVocabulary,
                                            CharacterVocabulary,
                                            build_vocabulary)

# One to four bytes a character.
TEXT = 'Zwölf €uro, ναί 🙂!\n'
FOLDER = Path(__file__).parents[2] / 'configs' / 'lm'


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Block edges within characters, several index entries a text."""
    monkeypatch.setattr(mapped_text, 'BLOCK', 7)
    monkeypatch.setattr(token_streams, 'INDEX_STEP', 5)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:

    def write_file(text: Any = TEXT * 8, name: str = 'a.txt') -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(data)
        return path

    return write_file


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer of the text, as a file."""
    tokenizers = pytest.importorskip('tokenizers')
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        show_progress=False,
        special_tokens=['<s>'],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator([TEXT * 4], trainer)
    path = tmp_path / 'tokenizer.json'
    model.save(str(path))
    return path


def counted(data: TextDataset) -> list:
    """The counted targets of all windows in order."""
    return [int(t) for item in data for t in item['targets'] if int(t) != -100]


def items(data: TextDataset):
    return (data[i] for i in range(len(data)))


# --- windows ---------------------------------------------------------------


@pytest.mark.parametrize('vocabulary', ['bytes', 'characters'])
@pytest.mark.parametrize('length, stride', [(1, None), (4, None), (7, 3),
                                            (7, 1), (20, 19), (142, None)])
def test_sequential_counts_every_target_once(write, small_blocks, vocabulary,
                                             length, stride) -> None:
    data = TextDataset(
        path=str(write()),
        length=length,
        split=None,
        mode='sequential',
        vocabulary=vocabulary,
        stride=stride)
    tokens = data.encode(TEXT * 8)
    assert counted(data) == tokens[1:].tolist()
    place, characters = 0, 0
    for item in items(data):
        assert item['tokens'].dtype == item['targets'].dtype == torch.int64
        assert item['tokens'].shape == item['targets'].shape == (length, )
        real = item['targets'] != -100
        assert item['characters'] == real.sum()
        # Counted targets end the window and follow their tokens.
        known = length - int(real.sum())
        assert real[known:].all()
        begin = place - known
        assert torch.equal(item['tokens'], tokens[begin:begin + length])
        assert torch.equal(item['targets'][known:],
                           tokens[place + 1:begin + length + 1])
        if begin and stride is not None and place + length < len(tokens) - 1:
            assert known == length - stride
        place += length - known
        characters += item['characters']
    assert characters == len(tokens) - 1


def test_random_windows_are_decided_by_seed_and_index(write) -> None:
    path = str(write())
    make = dict(path=path, length=16, vocabulary='characters', samples=200)
    data, again = TextDataset(**make), TextDataset(**make)
    other = TextDataset(seed=1, **make)
    text = data.encode((TEXT * 8)[:-1])
    starts = Counter()
    for i in reversed(range(200)):  # in any order
        item, twin = data[i], again[i]
        assert torch.equal(item['tokens'], twin['tokens'])
        assert torch.equal(item['tokens'][1:], item['targets'][:-1])
        assert item['characters'] == 16
        starts[data._window(i)[0]] += 1
    assert len(data) == 200
    assert min(starts) >= 0 and max(starts) <= data._last_start
    # First and last place come up: the text's edges are not left out.
    many = TextDataset(**dict(make, samples=4000))
    drawn = {many._window(i)[0] for i in range(4000)}
    assert drawn == set(range(data._last_start + 1))
    assert any(data._window(i) != other._window(i) for i in range(5))
    assert len(text) > data._last_start


def test_random_targets_stay_in_the_split(write) -> None:
    data = TextDataset(
        path=str(write(b'a' * 90 + b'b' * 10)), length=30, samples=300)
    for item in items(data):
        assert set(item['targets'].tolist()) == {ord('a')}


def test_workers_give_the_same(write) -> None:
    data = TextDataset(
        path=str(write()), length=8, vocabulary='characters', samples=6)
    loaders = [
        DataLoader(
            data,
            batch_size=3,
            num_workers=workers,
            multiprocessing_context='fork' if workers else None)
        for workers in (0, 1)
    ]
    for one, other in zip(*loaders):
        assert one['tokens'].shape == (3, 8)
        assert one['characters'].tolist() == [8, 8, 8]
        assert torch.equal(one['tokens'], other['tokens'])


def test_pickle_holds_no_text(write) -> None:
    data = TextDataset(path=str(write(b'x' * 300000)), length=8, samples=3)
    stored = pickle.dumps(data)
    assert len(stored) < 10000
    assert torch.equal(pickle.loads(stored)[2]['tokens'], data[2]['tokens'])


def test_fewer_sequential_samples_are_spread(write) -> None:
    make = dict(path=str(write()), length=4, split=None, mode='sequential')
    every, some = TextDataset(**make), TextDataset(samples=3, **make)
    assert len(some) == 3 and len(every) > 9
    step = len(every) / 3
    for i in range(3):
        assert torch.equal(some[i]['targets'], every[int(i * step)]['targets'])
    assert len(TextDataset(samples=10**6, **make)) == len(every)


@pytest.mark.parametrize('index', [-1, 3])
def test_no_such_sample(write, index) -> None:
    data = TextDataset(path=str(write()), length=4, samples=3)
    with pytest.raises(IndexError):
        data[index]


# --- splits and files ------------------------------------------------------


@pytest.mark.parametrize('fraction', [.1, .33, .5, .77])
def test_splits_are_contiguous_and_whole(write, fraction) -> None:
    """No character is cut, and the cut is the same for all vocabularies."""
    text = TEXT * 8
    cuts = []
    for vocabulary in ('bytes', 'characters'):
        make = dict(
            path=str(write(text)),
            length=1,
            mode='sequential',
            valid_fraction=fraction,
            test_fraction=.15,
            vocabulary=vocabulary)
        parts = [
            TextDataset(split=split, **make)
            for split in ('train', 'valid', 'test')
        ]
        texts = [
            part.decode(part._stream.tokens(0, len(part._stream)))
            for part in parts
        ]
        assert ''.join(texts) == text and '\ufffd' not in texts
        cuts.append([len(t.encode()) for t in texts])
        assert cuts[-1][1] == pytest.approx(
            fraction * len(text.encode()), abs=3)
    assert cuts[0] == cuts[1]


def test_enwik8_is_cut_as_usual(tmp_path: Path) -> None:
    """A sparse file of that size: nothing of it is read into memory."""
    path = tmp_path / 'enwik8'
    with open(path, 'wb') as file:
        file.truncate(10**8)
    tracemalloc.start()
    for split, size in (('train', 90), ('valid', 5), ('test', 5)):
        data = TextDataset(
            path=str(path),
            split=split,
            mode='sequential',
            length=1000,
            valid_fraction=.05,
            test_fraction=.05)
        assert len(data._stream) == size * 10**6
        assert len(data) == size * 1000
        assert sum(data[i]['characters'] for i in (0, len(data) - 1)) == 1999
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_folder_is_joined_in_order(write, tmp_path: Path) -> None:
    write('first ', 'a/2.txt')
    write('second ', 'b.txt')
    write('', 'a/empty.txt')
    write('never', 'a/other.md')
    write('third', 'c/1.txt')
    for vocabulary in ('bytes', 'characters'):
        data = TextDataset(
            data_root=str(tmp_path),
            length=17,
            split=None,
            mode='sequential',
            vocabulary=vocabulary)
        item, = items(data)
        assert data.decode(item['tokens']) == 'first second thir'
        assert data.decode(item['targets']) == 'irst second third'
    text = MappedText([tmp_path / n for n in ('a/2.txt', 'b.txt')])
    joined = b'first second '
    for start in range(len(joined) + 1):
        for stop in range(start, len(joined) + 1):
            assert text.read(start, stop).tobytes() == joined[start:stop]


@pytest.mark.parametrize('vocabulary', ['bytes', 'characters'])
def test_missing_and_empty(write, tmp_path: Path, vocabulary) -> None:
    make = dict(data_root=str(tmp_path), vocabulary=vocabulary)
    with pytest.raises(FileNotFoundError, match='TextDataset.*none.txt'):
        TextDataset(path='none.txt', **make)
    with pytest.raises(FileNotFoundError, match=r"no file '\*\*/\*.txt' in"):
        TextDataset(**make)
    write('', 'empty.txt')
    with pytest.raises(ValueError, match='empty.txt is empty'):
        TextDataset(path='empty.txt', **make)
    with pytest.raises(ValueError, match='is empty: no text in 1 file'):
        TextDataset(**make)
    with pytest.raises(ValueError, match='data_root, path or both'):
        TextDataset()


@pytest.mark.parametrize('mode', ['random', 'sequential'])
def test_window_longer_than_the_text(write, mode) -> None:
    make = dict(path=str(write(b'x' * 100)), split=None, mode=mode)
    assert len(TextDataset(length=99, **make)) == 1
    with pytest.raises(ValueError, match='has 100 tokens.*length=100'):
        TextDataset(length=100, **make)
    with pytest.raises(ValueError, match="'valid' has 10 tokens"):
        TextDataset(length=50, **dict(make, split='valid'))


def test_not_utf8(write, small_blocks) -> None:
    text = TEXT.encode() * 3
    write(text, 'a.txt')
    path = write(text + b'\xff' + text, 'b.txt')
    make = dict(path=str(path.parent), length=4)
    with pytest.raises(
            ValueError, match=f'b.txt is not UTF-8.*byte {len(text)}$'):
        TextDataset(vocabulary='characters', **make)
    TextDataset(vocabulary='bytes', **make)
    write(text[:-5], 'b.txt')  # cut within the last character but one
    with pytest.raises(ValueError, match='b.txt is not UTF-8'):
        TextDataset(vocabulary='characters', **make)


@pytest.mark.parametrize('wrong, error, message', [
    (dict(mode='shuffled'), ValueError, 'mode'),
    (dict(split='val'), ValueError, "'valid'"),
    (dict(split='test'), ValueError, 'empty'),
    (dict(valid_fraction=1.), ValueError, 'below 1'),
    (dict(valid_fraction=-.1), ValueError, 'at least 0'),
    (dict(length=0), ValueError, 'length is 0'),
    (dict(length=2.5), TypeError, 'length'),
    (dict(samples=0), ValueError, 'samples is 0'),
    (dict(seed=-1), ValueError, 'seed is -1'),
    (dict(stride=2), ValueError, 'sequential'),
    (dict(mode='sequential', stride=9), ValueError, '1 to 8'),
    (dict(vocab_size=255), ValueError, '256 entries, vocab_size is 255'),
    (dict(vocabulary='none.json'), FileNotFoundError, 'none.json'),
])
def test_wrong_arguments(write, wrong, error, message) -> None:
    with pytest.raises(error, match=message):
        TextDataset(**dict(dict(path=str(write()), length=8), **wrong))


# --- vocabularies ----------------------------------------------------------


def test_splits_share_the_characters_of_all(write) -> None:
    path = str(write('a' * 90 + 'b' * 10))
    train, valid = (
        TextDataset(path=path, length=4, split=s, vocabulary='characters')
        for s in ('train', 'valid'))
    assert train.vocabulary == valid.vocabulary
    assert train.vocab_size == 2
    assert set(valid[0]['tokens'].tolist()) == {1}


def test_text_with_other_characters(write) -> None:
    make = dict(path=str(write('abcabc')), length=2, split=None)
    with pytest.raises(ValueError, match=r"a.txt: 1 .* vocabulary: \['c'\]"):
        TextDataset(vocabulary=dict(type='characters', symbols='ab'), **make)
    wide = TextDataset(
        vocabulary=dict(type='characters', symbols='dcba'), **make)
    assert wide.encode('abcd').tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('kind', ['bytes', 'characters', 'tokenizers'])
def test_vocabulary_round_trip(write, tmp_path, request, kind) -> None:
    spec = kind if kind != 'tokenizers' else str(
        request.getfixturevalue('tokenizer'))
    data = TextDataset(path=str(write()), length=4, vocabulary=spec)
    ids = data.encode(TEXT)
    assert ids.dtype == torch.int64 and ids.ndim == 1
    assert 0 <= ids.min() and ids.max() < data.vocab_size
    # A tensor, a list, or one by one.
    assert data.decode(ids) == data.decode(ids.tolist()) == TEXT
    pieces = list(data.vocabulary.decode_stream(iter(ids.tolist())))
    assert ''.join(pieces) == TEXT
    assert not any('\ufffd' in piece for piece in pieces)
    assert '🙂' in pieces or kind == 'tokenizers'
    assert data.encode('').shape == (0, ) and data.decode([]) == ''
    with pytest.raises(ValueError, match=f'0 to {data.vocab_size - 1}'):
        data.decode([data.vocab_size])
    # A checkpoint is read without running code: plain values only.
    torch.save(data.metainfo, tmp_path / 'meta.pth')
    meta = torch.load(tmp_path / 'meta.pth', weights_only=True)
    assert meta == data.metainfo
    assert meta['vocab_size'] == data.vocab_size
    assert build_vocabulary(meta['vocabulary']) == data.vocabulary
    data.vocabulary.save(tmp_path / 'vocabulary.json')
    assert build_vocabulary(tmp_path / 'vocabulary.json') == data.vocabulary


def test_broken_bytes_decode_as_the_standard_says() -> None:
    data = bytes(np.random.default_rng(0).integers(0, 256, 2000).tolist())
    assert ByteVocabulary().decode(data) == data.decode('utf-8', 'replace')


def test_unknown_characters() -> None:
    vocabulary = CharacterVocabulary('bdf')
    for text, missing in (('a', 'a'), ('c', 'c'), ('bdfz', 'z')):
        with pytest.raises(ValueError, match=f"3 .* \\['{missing}'\\]"):
            vocabulary.encode(text)
    for symbols in ('', 'aa'):
        with pytest.raises(ValueError, match='distinct'):
            CharacterVocabulary(symbols)


@pytest.mark.parametrize('content, message', [
    ('no json', 'is not JSON'),
    ('[1]', 'type None'),
    ('{"type": "words"}', "'words'; allowed are .*'bytes'"),
    ('{"type": "characters"}', 'symbols'),
])
def test_no_vocabulary(write, content, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_vocabulary(write(content, 'v.json'))


def test_no_tokenizer(write) -> None:
    pytest.importorskip('tokenizers')
    with pytest.raises(ValueError, match='no tokenizer'):
        build_vocabulary(write('{"model": {}}', 'v.json'))


def test_tokenizers_not_installed(monkeypatch, write) -> None:
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ImportError, match='pip install tokenizers'):
        build_vocabulary(write(json.dumps(dict(model={})), 'v.json'))


@pytest.mark.parametrize('block', [7, 40])
def test_tokenizer_counts_characters(write, tokenizer, monkeypatch,
                                     block) -> None:
    """Each token counts once, each character after the first token's too.

    A block of 40 bytes holds the end of a line, one of 7 mostly none.
    """
    monkeypatch.setattr(mapped_text, 'BLOCK', block)
    text = TEXT * 8
    make = dict(
        path=str(write(text)),
        mode='sequential',
        split=None,
        vocabulary=str(tokenizer))
    data = TextDataset(length=1, **make)
    tokens = data._stream.tokens(0, len(data._stream))
    assert data.decode(tokens) == text
    if block == 40:
        assert tokens.tolist() == data.encode(TEXT).tolist() * 8
    first = data._stream.characters(0, 1)
    assert first == len(data.decode(tokens[:1]).rstrip('\ufffd'))
    for length, stride in ((1, None), (5, None), (9, 4), (40, 40)):
        data = TextDataset(length=length, stride=stride, **make)
        assert counted(data) == tokens[1:].tolist()
        assert sum(item['characters']
                   for item in items(data)) == len(text) - first


# --- the metric ------------------------------------------------------------


def metric() -> Any:
    pytest.importorskip('mmengine')
    from fma_vision.datasets import BitsPerCharacter
    from fma_vision.registry import METRICS
    built = METRICS.build(dict(type='fma_vision.BitsPerCharacter'))
    assert isinstance(built, BitsPerCharacter)
    return built


def test_metric_by_hand() -> None:
    scores = metric()
    scores.process({}, [
        dict(nats=torch.tensor(6.), tokens=torch.tensor(3), characters=4),
        dict(nats=1., tokens=1, characters=torch.tensor([3]))
    ])
    scores.process({}, [dict(nats=0, tokens=1, characters=1)])
    result = scores.evaluate(size=3)
    assert result == dict(
        bpc=pytest.approx(7 / 8 / math.log(2)),
        nats=pytest.approx(7 / 5),
        perplexity=pytest.approx(math.exp(7 / 5)))
    assert {type(v) for v in result.values()} == {float}


def test_metric_drops_what_a_sampler_added() -> None:
    scores = metric()
    sample = dict(nats=math.log(2), tokens=1, characters=1)
    scores.process({}, [sample] * 2 + [dict(sample, nats=50.)])
    assert scores.evaluate(size=2)['bpc'] == pytest.approx(1)


def test_metric_edges() -> None:
    scores = metric()
    scores.process({}, [dict(nats=1e6, tokens=1, characters=1)])
    assert scores.evaluate(size=1)['perplexity'] == math.inf
    with pytest.raises(KeyError, match="no \\['characters', 'nats'\\]"):
        scores.process({}, [dict(tokens=1)])
    scores.process({}, [dict(nats=0., tokens=0, characters=0)])
    with pytest.raises(ValueError, match='0 counted tokens'):
        scores.evaluate(size=1)


@pytest.mark.parametrize('vocabulary', ['bytes', 'characters'])
def test_unigram_entropy_of_a_text(write, vocabulary) -> None:
    """Dataset, loader and metric against the entropy counted directly."""
    data = TextDataset(
        path=str(write()),
        length=10,
        split=None,
        mode='sequential',
        vocabulary=vocabulary)
    tokens = data.encode(TEXT * 8)[1:]
    share = torch.bincount(tokens, minlength=data.vocab_size) / len(tokens)
    scores = metric()
    for batch in DataLoader(data, batch_size=4):
        real = batch['targets'] != -100
        # Token 0 stands in where none is counted; its share may be 0.
        nats = -share[batch['targets'].clamp(0)].log()
        nats = nats.where(real, 0)
        scores.process(batch, [
            dict(nats=n, tokens=t, characters=c) for n, t, c in zip(
                nats.double().sum(1), real.sum(1), batch['characters'])
        ])
    entropy = -(share[share > 0].log2() * share[share > 0]).sum()
    assert scores.evaluate(size=len(data))['bpc'] == pytest.approx(
        float(entropy), rel=1e-5)


# --- configs, real texts, bare installs ------------------------------------


@pytest.mark.parametrize('name', [
    'fma-lm-mini_1xb16-1k_tinyshakespeare-256', 'fma-lm_1xb32-20k_books-1k',
    'fma-lm_1xb32-50k_enwik8-1k'
])
def test_configs(name, tmp_path: Path) -> None:
    """Datasets and metrics build through the registries."""
    pytest.importorskip('mmengine')
    from mmengine.config import Config
    from mmengine.registry import DATASETS, METRICS
    cfg = Config.fromfile(str(FOLDER / f'{name}.py'))
    # As many symbols as the real text has.
    text = ''.join(map(chr, range(33, 98))) * 500
    for file in ('input.txt', 'train.txt', 'valid.txt', 'enwik8'):
        (tmp_path / file).write_text(text)
    for phase in ('train', 'val', 'test'):
        loader = cfg[f'{phase}_dataloader']
        loader.dataset.data_root = str(tmp_path)
        data = DATASETS.build(loader.dataset)
        assert data[0]['tokens'].shape == (loader.dataset.length, )
        assert data.vocab_size == loader.dataset.vocab_size
        train = phase == 'train'
        assert data.mode == ('random' if train else 'sequential')
        assert loader.sampler.shuffle is False
        if not train:
            METRICS.build(cfg[f'{phase}_evaluator'])
    assert cfg.train_dataloader.dataset.split in (None, 'train')
    assert cfg.val_dataloader.dataset.split in (None, 'valid')
    if 'enwik8' in name:
        assert cfg.test_dataloader.dataset.split == 'test'


@pytest.mark.data
def test_real_tiny_shakespeare(real_data) -> None:
    root = str(real_data('tinyshakespeare'))
    sizes = []
    for split in ('train', 'valid'):
        data = TextDataset(
            data_root=root,
            path='input.txt',
            split=split,
            length=256,
            mode='sequential',
            vocabulary='characters',
            vocab_size=65)
        sizes.append(len(data._stream))
        assert sum(data[i]['characters'] for i in range(len(data))) == \
            sizes[-1] - 1
    assert sizes == [1003855, 111539]
    assert data.decode(data.encode('To be, or not')) == 'To be, or not'


@pytest.mark.data
def test_real_books(real_data) -> None:
    root = str(real_data('books'))
    make = dict(data_root=root, split=None, samples=100)
    train = TextDataset(path='train.txt', **make)
    valid = TextDataset(path='valid.txt', mode='sequential', **make)
    assert (len(train._stream), len(valid._stream)) == (24907972, 1310662)
    characters = TextDataset(
        path='valid.txt', vocabulary='characters', vocab_size=83, **make)
    # The config's claim: bits per byte are bits per character here.
    assert len(characters._stream) == len(valid._stream)
    whole = TextDataset(path='', vocabulary='characters', **make)
    assert whole.vocab_size == 127
    text = Path(root, 'train.txt').read_text(encoding='utf-8')
    for place in (0, 1023, 1024, 777777, len(text) - 2048):
        got = whole._stream.tokens(place, place + 2048)
        assert whole.decode(got) == text[place:place + 2048]


def test_without_mmengine(write) -> None:
    script = f"""
import sys
for name in ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet'):
    sys.modules[name] = None
from fma_vision.datasets import TextDataset
data = TextDataset(path={str(write())!r}, length=4, vocabulary='characters')
print(data.decode(data.encode('€uro')), len(data[0]['tokens']))
"""
    done = subprocess.run([sys.executable, '-c', script],
                          capture_output=True,
                          text=True)
    assert done.stdout.split() == ['€uro', '4'], done.stderr
