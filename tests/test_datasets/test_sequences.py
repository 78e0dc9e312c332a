"""Labelled sequences: ListOps, bytes of text, pixels; batches of them."""

import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import LISTOPS, write_class_folders, write_sequences
from torch.utils.data import DataLoader

from fma_vision.datasets import (LengthGroupedSampler, ListOpsDataset,
                                 TextClassificationDataset, listops,
                                 pad_sequences)
from fma_vision.datasets.sequences import spread


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    pytest.importorskip('mmpretrain')
    return write_sequences(tmp_path_factory.mktemp('sequences'))


# --- ListOps ---------------------------------------------------------------


def decode(tokens: torch.Tensor) -> str:
    return ' '.join(listops.TOKENS[i] for i in tokens.tolist())


def write_listops(folder: Path, text: str) -> ListOpsDataset:
    (folder / 'a.tsv').write_bytes(text.encode())
    return ListOpsDataset(str(folder), 'a.tsv')


@pytest.mark.parametrize('block', [7, 1 << 20])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('last', [True, False])
def test_listops_reads_every_line(block: int, end: str, last: bool,
                                  tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(listops, 'BLOCK', block)
    lines = ['Source\tTarget'] + [f'{t}\t{v}' for t, v in LISTOPS]
    text = end.join(lines) + (end if last else '')
    data = write_listops(tmp_path, text)
    assert len(data) == len(LISTOPS)
    assert data.metainfo == dict(classes=tuple('0123456789'), vocab_size=15)
    for copy in (data, pickle.loads(pickle.dumps(data))):
        for i, (expression, value) in enumerate(LISTOPS):
            sample = copy[i]
            assert decode(sample['tokens']) == expression
            assert sample['tokens'].dtype == torch.int64
            assert sample['label'] == value
    with pytest.raises(IndexError):
        data[len(data)]


def test_listops_reads_the_benchmarks_form(tmp_path: Path) -> None:
    data = write_listops(tmp_path,
                         'Source\tTarget\r\n( ( ( [MAX 2 ) 9 ) ] )\t9\r\n')
    assert decode(data[0]['tokens']) == '[MAX 2 9 ]'


def test_listops_samples_are_spread(root: Path) -> None:
    whole = ListOpsDataset(str(root / 'listops'), 'val.tsv')
    few = ListOpsDataset(str(root / 'listops'), 'val.tsv', samples=3)
    assert [decode(few[i]['tokens']) for i in range(3)
            ] == [decode(whole[i]['tokens']) for i in (0, 2, 5)]
    assert few.sizes.tolist() == whole.sizes[[0, 2, 5]].tolist()
    assert spread(5, 9, '').tolist() == spread(5, None, '').tolist()


@pytest.mark.parametrize('text, message', [
    ('', 'is empty'),
    ('1 2\t3\n', 'first line'),
    ('Source\tTarget\n', 'no expression'),
])
def test_listops_refuses_files(text: str, message: str,
                               tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_listops(tmp_path, text)


@pytest.mark.parametrize(
    'line', ['[FIRST 1 2 ]\t1', '[MAX 1 2 ]\t10', '[MAX 1 2 ]', '\t3'])
def test_listops_names_the_bad_line(line: str, tmp_path: Path) -> None:
    data = write_listops(tmp_path, f'Source\tTarget\n[MIN 1 2 ]\t1\n{line}\n')
    assert data[0]['label'] == 1
    with pytest.raises(ValueError, match='a.tsv, line 3: '):
        data[1]


def test_listops_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='converters/listops.py'):
        ListOpsDataset(str(tmp_path), 'train.tsv')


# --- text ------------------------------------------------------------------


def write_labels(root: Path) -> Path:
    for label, texts in dict(
            b=[b'xy', b'\xff\x00\xfe'], a=[b'abc' * 9]).items():
        (root / label).mkdir()
        for i, text in enumerate(texts):
            (root / label / f'{i}.txt').write_bytes(text)
    (root / 'notes.md').write_text('not a class')
    return root


def test_text_is_bytes_with_sorted_labels(tmp_path: Path) -> None:
    data = TextClassificationDataset(str(write_labels(tmp_path)), max_length=5)
    assert data.metainfo == dict(classes=('a', 'b'), vocab_size=256)
    found = [(bytes(s['tokens'].tolist()), s['label'])
             for s in (data[i] for i in range(len(data)))]
    # Cut at five bytes; what is no text in any encoding is read as well.
    assert found == [(b'abcab', 0), (b'xy', 1), (b'\xff\x00\xfe', 1)]
    assert data.sizes.tolist() == [5, 2, 3]
    whole = TextClassificationDataset(str(tmp_path), max_length=None)
    assert len(whole[0]['tokens']) == whole.sizes[0] == 27
    # What tools leave is no class.
    (tmp_path / '.cache').mkdir()
    assert TextClassificationDataset(str(tmp_path)).metainfo == data.metainfo
    chosen = TextClassificationDataset(str(tmp_path), classes=('b', 'a'))
    assert [chosen[i]['label'] for i in range(3)] == [0, 0, 1]
    assert bytes(chosen[2]['tokens'].tolist()).startswith(b'abc')


def test_text_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no folder .*none'):
        TextClassificationDataset(str(tmp_path / 'none'))
    with pytest.raises(ValueError, match='a folder per class'):
        TextClassificationDataset(str(tmp_path))
    write_labels(tmp_path)
    with pytest.raises(FileNotFoundError, match="c for class 'c'"):
        TextClassificationDataset(str(tmp_path), classes=('a', 'c'))
    with pytest.raises(ValueError, match='max_length is 0'):
        TextClassificationDataset(str(tmp_path), max_length=0)
    (tmp_path / 'c').mkdir()
    with pytest.raises(FileNotFoundError, match="no file '.*' in .*c"):
        TextClassificationDataset(str(tmp_path))
    (tmp_path / 'c/0.txt').touch()
    with pytest.raises(ValueError, match='c/0.txt is empty'):
        TextClassificationDataset(str(tmp_path))


# --- pixels ----------------------------------------------------------------


def test_cifar10_is_grey_row_by_row(root: Path) -> None:
    from fma_vision.datasets import SequentialCIFAR10
    data = SequentialCIFAR10(str(root / 'cifar10'), 'test')
    assert len(data) == 10 and len(data.metainfo['classes']) == 10
    for index in (0, 7):
        sample, info = data[index], data.get_data_info(index)
        # By the formula of ITU-R 601 in place of Pillow's.
        rgb = np.asarray(Image.open(info['img_path']), np.float64)
        grey = rgb @ [.299, .587, .114]
        assert sample['tokens'].dtype == torch.int64
        found = sample['tokens'].numpy()
        assert np.abs(found - grey.reshape(-1)).max() <= 1
        assert sample['label'] == index


def test_cifar10_refuses_other_sizes(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    from fma_vision.datasets import SequentialCIFAR10
    from fma_vision.datasets.classification import CIFAR10_CLASSES
    write_class_folders(tmp_path, CIFAR10_CLASSES, 16, dict(test=1))
    with pytest.raises(ValueError, match='not 32 x 32'):
        SequentialCIFAR10(str(tmp_path), 'test')[0]
    with pytest.raises(ValueError, match='10 samples found'):
        SequentialCIFAR10(str(tmp_path), 'test', expected_length=10000)


def test_real_cifar10(real_data) -> None:
    pytest.importorskip('mmpretrain')
    from fma_vision.datasets import SequentialCIFAR10
    data = SequentialCIFAR10(str(real_data('cifar10')), 'test')
    assert len(data) == 10000
    tokens = data[0]['tokens']
    assert tokens.shape == (1024, ) and 0 <= tokens.min() < tokens.max() < 256


# --- batches ---------------------------------------------------------------


def test_padding() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    batch = pad_sequences(
        [dict(tokens=t, label=i) for i, t in enumerate(rows)])
    assert batch['tokens'].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch['key_mask'].tolist() == [[True] * 3, [True, False, False]]
    assert batch['labels'].tolist() == [0, 1]
    batch = pad_sequences([dict(tokens=rows[0], label=2)] * 2)
    assert batch['key_mask'] is None and batch['tokens'].shape == (2, 3)


class Sized:
    """A set of nothing but lengths."""

    def __init__(self, count: int) -> None:
        self.sizes = np.random.default_rng(0).integers(10, 1000, count)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> int:
        return index


def batches_of(sampler: LengthGroupedSampler, count: int) -> list:
    size = sampler.batch_size
    flat = list(islice(iter(sampler), count * size))
    return [flat[i:i + size] for i in range(0, len(flat), size)]


def test_sampler_groups_lengths_and_leaves_none_out() -> None:
    data = Sized(240)
    sampler = LengthGroupedSampler(data, 4, pool=30, seed=3)
    # Two pools of 120 are an epoch.
    epoch = batches_of(sampler, 60)
    assert sorted(i for batch in epoch for i in batch) == list(range(240))
    spans = [np.ptp(data.sizes[batch]) for batch in epoch]
    assert np.mean(spans) < 60  # about 600 where batches are random
    # Short ones do not come first.
    firsts = [data.sizes[batch[0]] for batch in epoch[:30]]
    assert sorted(firsts) != firsts
    again = LengthGroupedSampler(data, 4, pool=30, seed=3)
    assert batches_of(again, 60) == epoch == batches_of(sampler, 60)
    other = LengthGroupedSampler(data, 4, pool=30, seed=4)
    assert batches_of(other, 60) != epoch


def test_sampler_goes_on_after_a_break() -> None:
    data = Sized(50)
    whole = batches_of(LengthGroupedSampler(data, 4, pool=3, seed=0), 40)
    rest = LengthGroupedSampler(data, 4, pool=3, seed=0)
    rest.skip(4 * 13)
    assert batches_of(rest, 27) == whole[13:]
    with pytest.raises(ValueError, match='num_samples'):
        rest.skip(-1)


def test_sampler_divides_among_processes() -> None:
    data = Sized(240)
    ranks = []
    for rank in range(2):
        sampler = LengthGroupedSampler(data, 4, pool=15, seed=3)
        sampler.rank, sampler.world_size = rank, 2
        ranks.append(batches_of(sampler, 30))
    every = [i for batches in ranks for batch in batches for i in batch]
    assert sorted(every) == list(range(240))
    # Steps are about as long on both.
    gaps = [
        abs(data.sizes[a].mean() - data.sizes[b].mean())
        for a, b in zip(*ranks)
    ]
    assert np.mean(gaps) < 60


def test_sampler_in_a_loader() -> None:
    data = Sized(40)
    sampler = LengthGroupedSampler(data, 4, pool=5, seed=0)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    found = [batch.tolist() for batch in islice(loader, 12)]
    assert found == batches_of(sampler, 12)


def test_sampler_refuses() -> None:
    with pytest.raises(TypeError, match='list has none'):
        LengthGroupedSampler([1, 2], 4)
    with pytest.raises(ValueError, match='got 0 and 32'):
        LengthGroupedSampler(Sized(3), 0)
