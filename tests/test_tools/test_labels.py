"""Mistakes with labels and files are told before the first iteration."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Optional

import cv2
import numpy as np
import pytest
from PIL import Image
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from synthetic import write_image

from fma_vision.engine import UserError, labels
from fma_vision.engine.labels import (check_samples, explain_empty,
                                      explaining_labels)

SIDE = (24, 32)
CLASSES = ('a', 'b', 'c')


@pytest.fixture(autouse=True)
def scope() -> None:
    import mmpretrain  # noqa: F401
    import mmseg  # noqa: F401
    init_default_scope('mmseg')


def model(num_classes: int = 3, head: str = 'decode_head', **settings):
    """All that is asked of a model."""
    net = nn.Module()
    setattr(net, head, nn.Module())
    for name, value in dict(num_classes=num_classes, **settings).items():
        setattr(getattr(net, head), name, value)
    return net


def mask(*values: int) -> np.ndarray:
    """A map of these labels."""
    return np.resize(np.array(values, np.uint8), SIDE)


def write_set(root: Path, count: int = 4, label=mask(0, 1, 2, 255)) -> Path:
    """Write ``images`` and ``labels``, PNG files that fit together."""
    for i in range(count):
        write_image(root / f'images/{i:03d}.png', SIDE + (3, ), i)
        path = root / f'labels/{i:03d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(label).save(path)
    return root


def segmentation(root: Path, pipeline: Optional[list] = None, **kwargs):
    """The host's own dataset of such files."""
    from mmseg.datasets import BaseSegDataset
    settings = dict(
        img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=CLASSES))
    settings.update(kwargs)
    steps = pipeline or [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')
    ]
    return BaseSegDataset(data_root=str(root), pipeline=steps, **settings)


def told(dataset, net=None, how: str = 'sample') -> str:
    """What is said about a set: one line."""
    with pytest.raises(UserError) as caught:
        check_samples(net or model(), dataset, 'train_dataloader', how)
    line = str(caught.value)
    assert '\n' not in line
    return line


# -------------------------------------------------------------- right sets


@pytest.mark.parametrize('how', labels.CHOICES)
def test_a_right_set_passes(how: str, tmp_path) -> None:
    write_set(tmp_path)
    check_samples(model(), segmentation(tmp_path), 'set', how)
    check_samples(model(), segmentation(tmp_path, lazy_init=True), 'set', how)


def test_labels_that_are_mapped(tmp_path) -> None:
    """What counts is what the model gets, not what is in the file."""
    from mmseg.datasets import BaseSegDataset

    class FromOne(BaseSegDataset):
        METAINFO = dict(classes=('w', 'a', 'b', 'c'))

    root = write_set(tmp_path, label=mask(1, 2, 3, 0))
    net = model()
    check_samples(net, segmentation(root, reduce_zero_label=True), 'set')
    chosen = FromOne(
        data_root=str(root),
        img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=['a', 'b', 'c']),
        pipeline=segmentation(root).pipeline.transforms)
    check_samples(net, chosen, 'set')
    # Another number for what is no class, and one logit for two classes.
    check_samples(model(4), segmentation(root), 'set')
    check_samples(
        model(3, ignore_index=7),
        segmentation(write_set(tmp_path / 'seven', label=mask(0, 1, 2, 7))),
        'set')
    check_samples(
        model(1, out_channels=1),
        segmentation(write_set(tmp_path / 'two', label=mask(0, 1))), 'set')


def test_masks_of_one_class(tmp_path) -> None:
    """Some may hold a single class, or none, as long as not all do."""
    root = write_set(tmp_path)
    Image.fromarray(mask(0, 255)).save(root / 'labels/000.png')
    Image.fromarray(mask(255)).save(root / 'labels/001.png')
    check_samples(model(), segmentation(root), 'set')


def test_augmentation_at_test_time_loads_labels_too(tmp_path) -> None:
    write_set(tmp_path, label=mask(0, 9))
    steps = [
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[[dict(type='Resize', scale=(8, 8))],
                        [dict(type='LoadAnnotations')],
                        [dict(type='PackSegInputs')]])
    ]
    assert '0, 9 found' in told(segmentation(tmp_path, steps))


def test_no_labels_are_needed_where_none_are_loaded(tmp_path) -> None:
    root = write_set(tmp_path)
    steps = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    prefix = dict(img_path='images')
    check_samples(model(), segmentation(root, steps, data_prefix=prefix), 's')
    line = told(segmentation(root, data_prefix=prefix))
    assert 'has no label: data_prefix.seg_map_path' in line


# ---------------------------------------------------------- wrong labels


def test_one_label_beyond_the_classes_among_many(tmp_path) -> None:
    root = write_set(tmp_path, 60)
    Image.fromarray(mask(0, 1, 7)).save(root / 'labels/041.png')
    line = told(segmentation(root))
    assert line.startswith(f'{root}/labels/041.png: label values 0, 1, 7')
    for words in ('model.decode_head.num_classes is 3', '0 to 2, and 255',
                  'reduce_zero_label=True', 'metainfo.classes',
                  '1 mistakes in 60 of 60'):
        assert words in line


def test_values_are_those_of_the_file(tmp_path) -> None:
    root = write_set(tmp_path, label=mask(0, 3, 6))
    line = told(segmentation(root, reduce_zero_label=True))
    assert '0, 3, 6 found, less 1 by reduce_zero_label' in line
    assert 'reduce_zero_label=False' in line


def test_many_values_are_cut(tmp_path) -> None:
    root = write_set(tmp_path, 1, mask(*range(200)))
    line = told(segmentation(root))
    assert '8, 9, ... 199 (200 of them)' in line and len(line) < 600


@pytest.mark.parametrize('wrap', [
    lambda good, bad: RepeatDataset(bad, 3),
    lambda good, bad: ConcatDataset([good, bad]),
])
def test_wrapped_sets(wrap: Callable, tmp_path) -> None:
    good = segmentation(write_set(tmp_path / 'good'))
    bad = segmentation(write_set(tmp_path / 'bad', label=mask(0, 7)))
    assert 'bad/labels/' in told(wrap(good, bad))
    check_samples(model(), wrap(good, good), 'set')


def test_colour_picture(tmp_path) -> None:
    root = write_set(tmp_path)
    write_image(root / 'labels/002.png', SIDE + (3, ))
    line = told(segmentation(root))
    assert 'labels/002.png: the label is a colour picture' in line
    assert 'seg_map_suffix' in line


def test_jpeg_labels(tmp_path) -> None:
    values = np.random.choice([0, 1, 2, 255], SIDE).astype(np.uint8)
    root = write_set(tmp_path, label=values)
    for path in list((root / 'labels').iterdir()):
        Image.open(path).save(path.with_suffix('.jpg'))
    line = told(segmentation(root, seg_map_suffix='.jpg'))
    assert 'save labels as PNG, which seg_map_suffix must name' in line


@pytest.mark.parametrize('label, lost', [
    (np.resize(np.array([0, 1, 300], np.uint16), SIDE), '300'),
    (np.resize(np.array([-1, 0, 1], np.int32), SIDE), '-1'),
    (np.resize(np.array([0., 0.5, 1.], np.float32), SIDE), '0.5'),
])
def test_more_than_eight_bits(label: np.ndarray, lost: str, tmp_path) -> None:
    """The host's loader would cut them to wrong classes in silence."""
    root = write_set(tmp_path)
    for path in list((root / 'labels').iterdir()):
        Image.fromarray(label).save(path.with_suffix('.tif'))
    line = told(segmentation(root, seg_map_suffix='.tif'))
    assert f'cannot keep {lost}:' in line and '.tif: label' in line


def test_sixteen_bits_that_fit(tmp_path) -> None:
    label = mask(0, 1, 2).astype(np.uint16)
    check_samples(model(), segmentation(write_set(tmp_path, label=label)),
                  'set')


def test_binary_labels(tmp_path) -> None:
    root = write_set(tmp_path, label=mask(0, 255))
    line = told(segmentation(root), model(2))
    assert 'labels/000.png: label values 0, 255 found' in line or \
        '.png: label values 0, 255 found' in line
    assert '255 is ignored (ignore_index)' in line
    assert 'write the second class as 1' in line


@pytest.mark.parametrize('label, settings', [
    (mask(255), dict()),
    (mask(0, 255), dict(reduce_zero_label=True)),
])
def test_everything_ignored(label, settings, tmp_path) -> None:
    line = told(segmentation(write_set(tmp_path, label=label), **settings))
    assert 'every pixel is ignored' in line
    assert 'reduce_zero_label (here ' in line and '255' in line


def test_another_size_than_the_image(tmp_path) -> None:
    root = write_set(tmp_path)
    Image.fromarray(mask(0, 1)[:20]).save(root / 'labels/003.png')
    line = told(segmentation(root))
    assert 'labels/003.png: the label is 20 x 32' in line
    assert 'images/003.png 24 x 32' in line and 'seg_map_suffix' in line


# ----------------------------------------------------------- wrong files


def test_no_label_of_this_name(tmp_path) -> None:
    root = write_set(tmp_path)
    line = told(segmentation(root, seg_map_suffix='_labelIds.png'))
    assert "no such label for " in line and '_labelIds.png' in line
    assert "seg_map_suffix is '_labelIds.png'" in line
    assert "end with '.png'" in line
    prefix = dict(img_path='images', seg_map_path='nowhere')
    line = told(segmentation(root, data_prefix=prefix))
    assert f'no folder {root}/nowhere (see data_prefix)' in line


def test_no_image(tmp_path) -> None:
    root = write_set(tmp_path)
    (root / 'list.txt').write_text('000\n777\n')
    line = told(segmentation(root, ann_file='list.txt'))
    assert 'images/777.png: no such image' in line
    # The host cannot build such a set.
    config = dict(
        type='BaseSegDataset',
        data_root=str(root),
        img_suffix='.jpg',
        data_prefix=dict(img_path='images', seg_map_path='labels'))
    with pytest.raises(UserError) as caught:
        explain_empty(dict(dataset=dict(dataset=config)), 'train_dataloader')
    assert str(caught.value) == (
        f"train_dataloader: no image *.jpg in {root}/images: img_suffix is "
        f"'.jpg', the files in {root}/images end with '.png'")
    (root / 'list.txt').write_text('')
    with pytest.raises(UserError, match='holds no sample.*ann_file'):
        explain_empty(dict(config, ann_file='list.txt'), 'train_dataloader')


@pytest.mark.parametrize('name', ['images/002.png', 'labels/002.png'])
@pytest.mark.parametrize('rest', [0, 60])
def test_unreadable(name: str, rest: int, tmp_path) -> None:
    path = write_set(tmp_path) / name
    path.write_bytes(path.read_bytes()[:rest])
    line = told(segmentation(tmp_path))
    kind = 'image' if name.startswith('i') else 'label'
    assert line.startswith(f'{path}: the {kind} cannot be read (')


def test_a_jpeg_that_ends_early(tmp_path) -> None:
    """OpenCV fills the rest with grey and says nothing."""
    root = write_set(tmp_path)
    for path in list((root / 'images').iterdir()):
        write_image(path.with_suffix('.jpg'), SIDE + (3, ))
    path = root / 'images/001.jpg'
    path.write_bytes(path.read_bytes()[:-200])
    assert cv2.imread(str(path)) is not None
    line = told(segmentation(root, img_suffix='.jpg'))
    assert line.startswith(f'{path}: the image cannot be read (')


def test_every_mistake_is_named(tmp_path, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(labels, 'print_log',
                        lambda text, *_: lines.append(text))
    root = write_set(tmp_path, 6)
    for i in (1, 3, 4):
        Image.fromarray(mask(0, 5 + i)).save(root / f'labels/{i:03d}.png')
    line = told(segmentation(root), how='all')
    assert 'labels/001.png' in line and '(3 mistakes in 6 of 6' in line
    assert [text.split(': ')[0] for text in lines] == [
        f'also {root}/labels/003.png', f'also {root}/labels/004.png'
    ]


# ---------------------------------------------------------------- bounds


def test_a_sample_is_bounded_and_spread(monkeypatch) -> None:
    monkeypatch.setattr(labels, 'SAMPLE', 50)
    order = labels._order(10**6, 'sample')
    assert len(order) == 50 and {0, 10**6 - 1} <= set(order)
    gaps = np.diff(np.sort(order))
    assert gaps.max() - gaps.min() <= 2
    # Wherever time cuts it, no part of the set is left out.
    assert np.histogram(order[:20], 4, (0, 10**6))[0].min() > 0
    assert sorted(labels._order(7, 'sample')) == list(range(7))
    assert list(labels._order(10**4, 'all')) == list(range(10**4))


def test_processes_share_the_files(monkeypatch) -> None:
    found = []
    for rank in range(3):
        monkeypatch.setattr(labels, 'get_dist_info', lambda: (rank, 3))
        found += labels._order(10, 'all').tolist()
    assert sorted(found) == list(range(10))


def test_a_sample_ends_in_time(tmp_path, monkeypatch) -> None:
    read, lines = [], []
    load = labels._load
    monkeypatch.setattr(labels, 'print_log',
                        lambda text, *_: lines.append(text))
    monkeypatch.setattr(labels, 'SECONDS', .05)
    monkeypatch.setattr(labels, 'PAUSE', .02)

    def slow(part, index):
        time.sleep(.03)
        read.append(index)
        return load(part, index)

    monkeypatch.setattr(labels, '_load', slow)
    dataset = segmentation(write_set(tmp_path, 30))
    check_samples(model(), dataset, 'train_dataloader')
    assert 1 <= len(read) < 10
    assert 'samples checked' in lines[0]  # how far it is
    assert lines[-1].endswith('of 30 samples of train_dataloader checked')
    del read[:]
    check_samples(model(), dataset, 'train_dataloader', 'all')
    assert len(read) == 30


def test_nothing_random_is_drawn(tmp_path) -> None:
    """A training is the same with and without the check."""
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    check_samples(model(), segmentation(write_set(tmp_path)), 'set', 'all')
    assert np.random.get_state()[1].tolist() == before


# --------------------------------------------------- classes of a picture


def folders(root: Path, **kwargs):
    from mmpretrain.datasets import CustomDataset
    init_default_scope('mmpretrain')
    return CustomDataset(
        data_root=str(root),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='PackInputs')],
        **kwargs)


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name in ('cat', 'dog'):
        for i in range(3):
            write_image(tmp_path / f'{name}/{i}.png', SIDE + (3, ))
    return tmp_path


def test_class_folders(pictures) -> None:
    net = model(2, 'head')
    check_samples(net, folders(pictures), 'set')
    (pictures / 'dog/1.png').write_text('no image')
    line = told(folders(pictures), net)
    assert line.startswith(f'{pictures}/dog/1.png: the image cannot be read')


def test_an_empty_class_folder(pictures) -> None:
    (pictures / 'eel').mkdir()
    (pictures / 'eel/0.gif').write_text('')
    line = told(folders(pictures), model(3, 'head'))
    assert f'class folder {pictures}/eel holds no image' in line
    assert "'.gif'" in line and '.png' in line


def test_a_list_of_labels(pictures) -> None:
    (pictures / 'list.txt').write_text('cat/0.png 0\ndog/0.png 2\n')
    dataset = folders(pictures, ann_file='list.txt')
    line = told(dataset, model(2, 'head'))
    assert 'dog/0.png: class label 2 found, model.head.num_classes is 2' in line
    (pictures / 'list.txt').write_text('cat/0.png 0\ndog/7.png 1\n')
    line = told(folders(pictures, ann_file='list.txt'), model(2, 'head'))
    assert 'dog/7.png: no such image' in line


# ----------------------------------------------------------- sequences


def test_a_line_that_cannot_be_read(tmp_path) -> None:
    from fma_vision.datasets import ListOpsDataset
    (tmp_path /
     'a.tsv').write_text('Source\tTarget\n[MAX 1 2 ]\t2\n[MIN 1 X ]\t1\n')
    line = told(ListOpsDataset(str(tmp_path), 'a.tsv'), model(10, 'head'))
    assert 'a.tsv: sample 1 cannot be read: ' in line and 'line 3' in line


# --------------------------------------------------------- through a tool


def test_a_loss_that_meets_such_a_label() -> None:
    import torch
    with pytest.raises(UserError, match='Target 7.*--check-data all'):
        with explaining_labels():
            nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([7]))
    with pytest.raises(IndexError, match='other'):
        with explaining_labels():
            raise IndexError('other')
