"""Cached images: the pixels of the files, whoever reads them."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DATASETS, DefaultScope
from synthetic import write_class_folders, write_image, write_paired
from torch.utils.data import DataLoader

from fma_vision.datasets import LoadCachedImage, cached_images
from fma_vision.datasets.cached_images import KEY, cache_images, read_cached
from fma_vision.datasets.classification import CIFAR10_CLASSES


def samples_of(root: Path) -> list:
    """Pictures of several sizes, one of them grey."""
    shapes = [(5, 7, 3), (48, 64, 3), (9, 4), (1, 1, 3)]
    for i, shape in enumerate(shapes):
        write_image(root / f'{i}.jpg', shape, i)
    return [dict(img_path=str(root / f'{i}.jpg')) for i in range(len(shapes))]


def first_pixels(root: str) -> list:
    """What one process of several sees."""
    samples = [dict(img_path=str(p)) for p in sorted(Path(root).glob('*.jpg'))]
    cache_images(samples, root)
    return [int(LoadCachedImage()(s)['img'].sum()) for s in samples]


@pytest.mark.parametrize('to_float32', [False, True])
def test_same_as_from_file(tmp_path: Path, to_float32: bool) -> None:
    samples = samples_of(tmp_path)
    cache_images(samples, str(tmp_path))
    for sample in samples:
        assert KEY in sample
        path = dict(img_path=sample['img_path'])
        wanted = LoadImageFromFile(to_float32=to_float32)(path)
        found = LoadCachedImage(to_float32=to_float32)(dict(sample))
        assert set(found) == set(wanted)
        assert found['img'].dtype == wanted['img'].dtype
        np.testing.assert_array_equal(found['img'], wanted['img'])
        for key in ('img_shape', 'ori_shape'):
            assert tuple(found[key]) == tuple(wanted[key])


def test_copies_may_be_changed(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    cache_images(samples, str(tmp_path))
    first = LoadCachedImage()(dict(samples[1]))['img']
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(LoadCachedImage()(dict(samples[1]))['img'],
                                  kept)


def test_decoded_once(tmp_path: Path, monkeypatch) -> None:
    cache_images(samples_of(tmp_path), str(tmp_path))
    monkeypatch.setattr(cached_images, 'decode', None)
    monkeypatch.setattr(LoadImageFromFile, 'transform', None)
    samples = [dict(img_path=str(tmp_path / f'{i}.jpg')) for i in range(4)]
    cache_images(samples, str(tmp_path))
    assert LoadCachedImage()(samples[0])['img'].shape == (5, 7, 3)


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    cache_images(samples, str(tmp_path))
    before = samples[1][KEY][0]
    write_image(tmp_path / '1.jpg', (48, 64, 3), 99)
    os.utime(tmp_path / '1.jpg', ns=(1, 1))
    again = [dict(img_path=s['img_path']) for s in samples]
    cache_images(again, str(tmp_path))
    assert again[1][KEY][0] != before
    np.testing.assert_array_equal(
        LoadCachedImage()(dict(again[1]))['img'],
        LoadImageFromFile()(dict(img_path=again[1]['img_path']))['img'])


@pytest.mark.parametrize('damage', ['shapes', 'shorter', 'pixels', 'gone'])
def test_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    cache_images(samples_of(tmp_path), str(tmp_path))
    pixels, = (tmp_path / 'cache').glob('*.bin')
    index = pixels.with_suffix('.shapes')
    if damage == 'gone':
        pixels.unlink()
    elif damage == 'pixels':
        pixels.write_bytes(pixels.read_bytes()[:-1])
    else:
        left = dict(shapes=0, shorter=5)[damage]
        index.write_bytes(index.read_bytes()[:left])
    samples = samples_of(tmp_path)
    cache_images(samples, str(tmp_path))
    for sample in samples:
        wanted = LoadImageFromFile()(dict(img_path=sample['img_path']))['img']
        np.testing.assert_array_equal(LoadCachedImage()(sample)['img'], wanted)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_broken_image_is_named(content: bytes, tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    (tmp_path / '2.jpg').write_bytes(content)
    with pytest.raises(ValueError, match='2.jpg'):
        cache_images(samples, str(tmp_path))
    assert not list((tmp_path / 'cache').iterdir())


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    samples = samples_of(tmp_path)

    def refuse(*_, **__):
        raise PermissionError('read-only')

    monkeypatch.setattr(cached_images, 'whole_file', refuse)
    cache_images(samples, str(tmp_path))
    assert not any(KEY in sample for sample in samples)
    assert LoadCachedImage()(samples[0])['img'].shape == (5, 7, 3)


def test_several_processes_at_once(tmp_path: Path) -> None:
    samples = samples_of(tmp_path)
    wanted = [int(LoadImageFromFile()(s)['img'].sum()) for s in samples]
    with ProcessPoolExecutor(3, get_context('fork')) as pool:
        found = list(pool.map(first_pixels, [str(tmp_path)] * 6))
    assert found == [wanted] * 6
    # Nothing half-written is left.
    names = sorted(p.suffix for p in (tmp_path / 'cache').iterdir())
    assert names == ['.bin', '.shapes']


def test_only_plain_loading_is_cached() -> None:
    """A step that reads something else goes on reading the file."""
    steps = [
        dict(type='LoadImageFromFile', color_type='grayscale'),
        dict(type='LoadAnnotations'),
        LoadImageFromFile()
    ]
    assert read_cached(steps) == steps
    step, = read_cached([dict(type='LoadImageFromFile', to_float32=True)])
    assert step == dict(type='fma_vision.LoadCachedImage', to_float32=True)


@pytest.mark.parametrize('kind', ['CIFAR10FolderDataset', 'CamVidDataset'])
@pytest.mark.parametrize('workers', [0, 2])
def test_datasets(kind: str, workers: int, tmp_path: Path) -> None:
    """A whole set with and without the cache, through worker processes."""
    if kind == 'CamVidDataset':
        write_paired(tmp_path, 11)
        more = dict(
            data_prefix=dict(
                img_path='images/training',
                seg_map_path='annotations/training'))
        scope, rest = 'mmseg', [dict(type='LoadAnnotations')]
    else:
        write_class_folders(tmp_path, CIFAR10_CLASSES, 32, dict(train=2))
        more, scope, rest = dict(split='train'), 'mmpretrain', []
    images = []
    for cache in (False, True):
        with DefaultScope.overwrite_default_scope(scope):
            data = DATASETS.build(
                dict(
                    type=f'fma_vision.{kind}',
                    data_root=str(tmp_path),
                    cache_images=cache,
                    pipeline=[dict(type='LoadImageFromFile'), *rest],
                    **more))
        assert isinstance(data.pipeline.transforms[0],
                          LoadCachedImage) == cache
        assert (KEY in data.get_data_info(0)) == cache
        loader = DataLoader(
            data, num_workers=workers, collate_fn=lambda batch: batch[0])
        images.append([sample['img'] for sample in loader])
    assert len(images[0]) == len(images[1]) > 1
    for one, other in zip(*images):
        np.testing.assert_array_equal(one, other)
