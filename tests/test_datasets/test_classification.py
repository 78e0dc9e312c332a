"""The small classification sets: labels, lengths and clear errors."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmpretrain')

from mmengine.registry import DATASETS, DefaultScope
from synthetic import (idx_bytes, write_class_folders, write_fashion_mnist,
                       write_tiny_imagenet)

from fma_vision.datasets import (CIFAR10FolderDataset, FashionMNISTDataset,
                                 TinyImageNet100Dataset)
from fma_vision.datasets.classification import CIFAR10_CLASSES
from fma_vision.datasets.idx import read_idx


@pytest.fixture(autouse=True)
def cls_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path, CIFAR10_CLASSES, 32,
                               dict(train=2, test=1))


def test_label_is_the_folder(cifar: Path) -> None:
    data = DATASETS.build(
        dict(
            type='fma_vision.CIFAR10FolderDataset',
            data_root=str(cifar),
            split='train',
            expected_length=20,
            pipeline=[dict(type='LoadImageFromFile')]))
    assert len(data) == 20
    for i in range(20):
        sample = data[i]
        folder = Path(sample['img_path']).parent.name
        assert CIFAR10_CLASSES[sample['gt_label']] == folder
        assert sample['img'].shape == (32, 32, 3)


def test_missing_class_is_an_error_not_a_shift(cifar: Path) -> None:
    shutil.rmtree(cifar / 'test' / 'bird')
    with pytest.raises(ValueError, match="missing: \\['bird'\\]"):
        CIFAR10FolderDataset(data_root=str(cifar), split='test')


def test_unknown_class_folder(cifar: Path) -> None:
    (cifar / 'test' / 'unicorn').mkdir()
    with pytest.raises(ValueError, match="not a class: \\['unicorn'\\]"):
        CIFAR10FolderDataset(data_root=str(cifar), split='test')


def test_length_is_checked(cifar: Path) -> None:
    with pytest.raises(ValueError, match='10 samples found, .* 10000'):
        CIFAR10FolderDataset(
            data_root=str(cifar), split='test', expected_length=10000)


def test_missing_split(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='cifar10.py'):
        CIFAR10FolderDataset(data_root=str(tmp_path), split='test')


def test_tiny_imagenet_order_is_the_file(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    path = tmp_path / 'classes.txt'
    # Another order than the alphabet's.
    path.write_text('\n'.join(reversed(path.read_text().splitlines())))
    data = TinyImageNet100Dataset(data_root=str(tmp_path), split='val')
    assert len(data.CLASSES) == len(data) == 100
    assert data.CLASSES[0] == 'class 99'
    for i in (0, 57, 99):
        info = data.get_data_info(i)
        assert Path(info['img_path']).parent.name == f'n{99 - i:08d}'
        assert info['gt_label'] == i


def test_tiny_imagenet_without_class_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='classes.txt'):
        TinyImageNet100Dataset(data_root=str(tmp_path), split='val')


@pytest.mark.parametrize('compressed', [True, False])
@pytest.mark.parametrize('test_mode', [True, False])
def test_fashion_mnist_split_decides(tmp_path: Path, compressed: bool,
                                     test_mode: bool) -> None:
    """The files of a split are read whatever ``test_mode`` says."""
    write_fashion_mnist(tmp_path, train=8, test=4, compressed=compressed)
    suffix = '.gz' if compressed else ''
    for split, prefix, number in (('train', 'train', 8), ('test', 't10k', 4)):
        data = FashionMNISTDataset(
            data_root=str(tmp_path),
            split=split,
            test_mode=test_mode,
            expected_length=number)
        images = read_idx(tmp_path / f'{prefix}-images-idx3-ubyte{suffix}')
        assert len(data) == number
        for i in range(number):
            info = data.get_data_info(i)
            np.testing.assert_array_equal(info['img'], images[i])
            assert info['gt_label'] == i % 10


def test_fashion_mnist_real(real_data) -> None:
    root = real_data('fashion_mnist')
    for split, number in (('train', 60000), ('test', 10000)):
        data = FashionMNISTDataset(
            data_root=str(root), split=split, expected_length=number)
        labels = data.get_gt_labels()
        assert np.bincount(labels).tolist() == [number // 10] * 10


def test_fashion_mnist_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'val'"):
        FashionMNISTDataset(data_root=str(tmp_path), split='val')


def test_fashion_mnist_missing_file(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / 't10k-labels-idx1-ubyte.gz').unlink()
    with pytest.raises(FileNotFoundError, match='t10k-labels'):
        FashionMNISTDataset(data_root=str(tmp_path), split='test')


def test_fashion_mnist_wrong_length(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, test=4)
    with pytest.raises(ValueError, match='4 samples found'):
        FashionMNISTDataset(
            data_root=str(tmp_path), split='test', expected_length=10000)


def test_fashion_mnist_labels_of_another_set(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, test=4)
    data = idx_bytes(np.zeros(3, np.uint8))
    (tmp_path / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match='do not belong together'):
        FashionMNISTDataset(data_root=str(tmp_path), split='test')


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
# No time in it: the bytes are in a test's name, which every process that
# collects the tests must find alike.
CUT_GZIP = gzip.compress(GOOD, mtime=0)[:-9]


def test_idx_round_trip(tmp_path: Path) -> None:
    path = tmp_path / 'x'
    path.write_bytes(GOOD)
    np.testing.assert_array_equal(
        read_idx(path),
        np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize('data, name, message', [
    (b'', 'x', 'no IDX file'),
    (b'\x00\x00\x0d\x01' + GOOD[4:], 'x', 'no IDX file'),
    (GOOD[:10], 'x', 'cut short'),
    (GOOD[:-1], 'x', 'holds 23 bytes'),
    (GOOD + b'!', 'x', 'holds 25 bytes'),
    (GOOD, 'x.gz', 'broken gzip'),
    (CUT_GZIP, 'x.gz', 'broken gzip'),
])
def test_idx_broken(tmp_path: Path, data: bytes, name: str,
                    message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(path)
