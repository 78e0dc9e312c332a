"""The small segmentation sets: labels, splits and clear errors."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')

from mmengine.registry import DATASETS, DefaultScope
from synthetic import (LISTS, SEG_SIDE, write_image, write_labelmefacade,
                       write_mask, write_paired)

from fma_vision.datasets import (CamVidDataset, CamVidStreet8Dataset,
                                 DubaiAerialDataset, LabelMeFacadeDataset)

PREFIX = dict(img_path='images/training', seg_map_path='annotations/training')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@pytest.fixture(autouse=True)
def seg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.mark.parametrize('cls, number', [(CamVidDataset, 11),
                                         (CamVidStreet8Dataset, 8),
                                         (LabelMeFacadeDataset, 8),
                                         (DubaiAerialDataset, 6)])
def test_classes_and_colours(cls: type, number: int) -> None:
    classes, palette = cls.METAINFO['classes'], cls.METAINFO['palette']
    assert len(classes) == len(set(classes)) == number
    colours = [tuple(c) for c in palette]
    assert len(set(colours)) == number
    assert all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in colours)


def test_reads_pairs(tmp_path: Path) -> None:
    write_paired(tmp_path, 11, training=3)
    data = DATASETS.build(
        dict(
            type='fma_vision.CamVidDataset',
            data_root=str(tmp_path),
            data_prefix=PREFIX,
            pipeline=LOAD))
    assert len(data) == 3
    for i in range(3):
        sample = data[i]
        path = Path(sample['seg_map_path'])
        assert path.stem == Path(sample['img_path']).stem
        np.testing.assert_array_equal(sample['gt_seg_map'],
                                      np.array(Image.open(path)))
        assert sample['img'].shape == SEG_SIDE + (3, )


def test_joined_sets_share_a_pipeline(tmp_path: Path) -> None:
    """A set's own pipeline goes before the common one."""
    write_paired(tmp_path, 11, training=2)
    part = dict(
        type='fma_vision.CamVidDataset',
        data_root=str(tmp_path),
        data_prefix=PREFIX)
    whole = dict(
        type='fma_vision.ConcatDataset',
        datasets=[part, dict(part, pipeline=LOAD[:1])],
        pipeline=LOAD)
    data = DATASETS.build(whole)
    assert ['gt_seg_map' in sample
            for sample in data] == [True] * 2 + [False] * 2
    built = DATASETS.build(dict(part, pipeline=LOAD))
    assert len(DATASETS.build(dict(whole, datasets=[built, built]))) == 4


def test_camvid_to_street_by_name(tmp_path: Path) -> None:
    """Every label maps to the class of the same meaning, or to 255."""
    write_image(tmp_path / 'images/training/a.jpg', (2, 12, 3))
    mask = np.tile(np.array([*range(11), 255], np.uint8), (2, 1))
    path = tmp_path / 'annotations/training/a.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(mask).save(path)
    data = CamVidStreet8Dataset(
        data_root=str(tmp_path),
        data_prefix=PREFIX,
        subset='camvid',
        pipeline=LOAD)
    sample = data[0]
    assert sample['subset'] == 'camvid'
    row = sample['gt_seg_map'][0]
    street = CamVidStreet8Dataset.METAINFO['classes']
    names = [street[v] if v != 255 else None for v in row]
    same = {n: n for n in ('building', 'car', 'pavement', 'road', 'sky')}
    same['tree'] = 'vegetation'
    camvid = CamVidDataset.METAINFO['classes']
    assert names == [same.get(n) for n in camvid] + [None]


def test_street_classes_cannot_be_renamed(tmp_path: Path) -> None:
    write_paired(tmp_path, 11)
    with pytest.raises(ValueError, match='only'):
        CamVidStreet8Dataset(
            data_root=str(tmp_path),
            data_prefix=PREFIX,
            metainfo=dict(classes=('sky', )))


class TestSplit:
    """The lists of LabelMeFacade that come with the package."""

    train = (LISTS / 'labelmefacade_train.txt').read_text().split()
    val = (LISTS / 'labelmefacade_val.txt').read_text().split()

    def test_covers_the_set_once(self) -> None:
        every = self.train + self.val
        assert len(every) == len(set(every)) == 945
        official = [n for n in every if n.startswith('training/')]
        assert len(official) == 100
        assert set(official) <= set(self.train)
        assert len(self.val) == 189

    def test_no_collection_in_both(self, load_script) -> None:
        script = load_script(
            'tools/dataset_converters/labelmefacade_splits.py')

        def collections(lines: list) -> set:
            names = {Path(line).name.split('__')[0] for line in lines}
            return names - {script.INDEPENDENT}

        train, val = collections(self.train), collections(self.val)
        assert train and val
        for name in val:
            assert not any(
                name.startswith(t) or t.startswith(name) for t in train), name

    def test_is_what_the_script_makes(self, load_script) -> None:
        script = load_script(
            'tools/dataset_converters/labelmefacade_splits.py')
        stems = dict(training=[], validation=[])
        for line in self.train + self.val:
            part, stem = line.split('/')
            stems[part].append(stem)
        made = script.split(**stems)
        assert made == (self.train, self.val)

    def test_is_what_the_datasets_read(self, tmp_path: Path) -> None:
        write_labelmefacade(tmp_path)
        for split, lines in (('train', self.train), ('val', self.val)):
            data = LabelMeFacadeDataset(data_root=str(tmp_path), split=split)
            read = [
                Path(data.get_data_info(i)['img_path']).relative_to(
                    tmp_path / 'images').with_suffix('').as_posix()
                for i in range(len(data))
            ]
            assert read == lines

    def test_matches_the_real_set(self, real_data) -> None:
        root = real_data('labelmefacade')
        there = {
            p.relative_to(root / 'images').with_suffix('').as_posix()
            for p in (root / 'images').glob('*/*.jpg')
        }
        assert there == set(self.train + self.val)

    def test_no_near_duplicate_in_val(self, real_data) -> None:
        """No validation photograph looks like a training one."""
        root = real_data('labelmefacade') / 'images'

        def thumbnails(lines: list) -> np.ndarray:
            rows = []
            for line in lines:
                image = Image.open(root / f'{line}.jpg').convert('L')
                row = np.asarray(image.resize((24, 24), Image.BOX), float)
                row = row.ravel() - row.mean()
                rows.append(row / np.linalg.norm(row))
            return np.stack(rows)

        likeness = thumbnails(self.val) @ thumbnails(self.train).T
        assert likeness.max() < 0.95


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'valid'"):
        LabelMeFacadeDataset(data_root=str(tmp_path), split='valid')
    with pytest.raises(ValueError, match='not both'):
        LabelMeFacadeDataset(
            data_root=str(tmp_path), split='val', ann_file='x.txt')


def test_missing_folder_names_the_converter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='camvid.py'):
        CamVidDataset(data_root=str(tmp_path), data_prefix=PREFIX)


def test_empty_folder(tmp_path: Path) -> None:
    for part in PREFIX.values():
        (tmp_path / part).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='no \\*.jpg'):
        CamVidDataset(data_root=str(tmp_path), data_prefix=PREFIX)


def test_missing_mask(tmp_path: Path) -> None:
    write_paired(tmp_path, 6)
    lost = sorted((tmp_path / 'annotations/training').iterdir())[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f'1 files .*{lost.name}'):
        DubaiAerialDataset(data_root=str(tmp_path), data_prefix=PREFIX)


def test_missing_listed_file(tmp_path: Path) -> None:
    write_labelmefacade(tmp_path)
    shutil.rmtree(tmp_path / 'annotations/validation')
    (tmp_path / 'annotations/validation').mkdir()
    with pytest.raises(FileNotFoundError, match='189 files are missing'):
        LabelMeFacadeDataset(data_root=str(tmp_path), split='val')


def test_mask_helper_has_ignored_pixels(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / 'm.png', 4)
    assert (mask == 255).any() and mask[mask != 255].max() < 4
