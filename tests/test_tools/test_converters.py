"""Converters: official and packed layouts in, checked data or nothing out."""

import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image
from synthetic import (SEG_SIDE, write_class_folders, write_fashion_mnist,
                       write_image, write_mask, write_paired)

FOLDER = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
SEGMENTATION = dict(camvid=11, labelmefacade=8, dubai_aerial=6, ade20k=151)


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def converter(load_script) -> Callable:
    """Loads a converter by name."""
    return lambda name: load_script(f'tools/dataset_converters/{name}.py')


@pytest.fixture
def error():
    from common import ConversionError
    return ConversionError


def read_all(root: Path) -> dict:
    """Arrays of every image under a folder, by relative path."""
    return {
        p.relative_to(root).as_posix(): np.array(Image.open(p))
        for p in sorted(root.rglob('*.*'))
        if p.suffix in ('.png', '.jpg', '.JPEG')
    }


def assert_same(a: dict, b: dict) -> None:
    assert sorted(a) == sorted(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def assert_nothing_left(out: Path) -> None:
    assert not out.exists()
    assert [p for p in out.parent.iterdir() if p.name.startswith('.')] == []


@pytest.mark.parametrize('name', SEGMENTATION)
@pytest.mark.parametrize('kind', ['folder', 'tar', 'tar.xz', 'zip'])
def test_packed_segmentation(name: str, kind: str, tmp_path: Path, converter,
                             capsys) -> None:
    source = write_paired(tmp_path / 'in' / name, SEGMENTATION[name])
    if kind != 'folder':
        form = {'tar.xz': 'xztar'}.get(kind, kind)
        source = shutil.make_archive(
            str(tmp_path / 'packed'), form, tmp_path / 'in')
    out = tmp_path / 'out' / name
    converter(name).convert([str(source)], str(out), False, True)
    assert_same(read_all(out), read_all(tmp_path / 'in' / name))
    assert '4 training, 2 validation' in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == [name]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize('name', SEGMENTATION)
def test_incomplete_set_is_refused(name: str, tmp_path: Path, converter,
                                   error) -> None:
    source = write_paired(tmp_path / 'in', SEGMENTATION[name])
    with pytest.raises(error, match='4 found, the whole set has'):
        converter(name).convert([str(source)], str(tmp_path / 'out'), False,
                                False)
    assert_nothing_left(tmp_path / 'out')


def colour_tile(colours: dict, path: Path, seed: int) -> np.ndarray:
    """Write a mask of colours; give its labels."""
    table = sorted(colours.items())
    pick = np.random.default_rng(seed).integers(0, len(table), SEG_SIDE)
    rgb = np.array([c for c, _ in table], np.uint8)[pick]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return np.array([label for _, label in table], np.uint8)[pick]


def test_labelmefacade_official(tmp_path: Path, converter, error) -> None:
    module, source, out = converter(
        'labelmefacade'), tmp_path / 'git', tmp_path / 'out'
    wanted = {}
    for i, (part, name) in enumerate([('training', 'walk__a'),
                                      ('validation', 'walk__b.c')]):
        write_image(source / 'images' / f'{name}.jpg', SEG_SIDE + (3, ), i)
        wanted[f'{part}/{name}'] = colour_tile(
            module.COLOURS, source / 'labels' / f'{name}.png', i)
    (source / 'train.txt').write_text('images/walk__a.jpg\n')
    (source / 'test.txt').write_text('images/walk__b.c.jpg\n\n')
    module.convert([str(source)], str(out), False, True)
    for key, labels in wanted.items():
        mask = np.array(Image.open(out / 'annotations' / f'{key}.png'))
        np.testing.assert_array_equal(mask, labels)
        assert (out / 'images' / f'{key}.jpg').is_file()
    # A colour that is no class.
    (tmp_path / 'bad').mkdir()
    Image.new('RGB', SEG_SIDE[::-1],
              (1, 2, 3)).save(source / 'labels' / 'walk__a.png')
    with pytest.raises(error, match=r'walk__a.png holds colour \(1, 2, 3\)'):
        module.convert([str(source)], str(tmp_path / 'bad/out'), False, True)
    assert_nothing_left(tmp_path / 'bad/out')


def test_dubai_official(tmp_path: Path, converter) -> None:
    module, source, out = converter(
        'dubai_aerial'), tmp_path / 'set', tmp_path / 'out'
    wanted = {}
    for tile, part in ((1, 'training'), (5, 'training'), (6, 'validation'),
                       (7, None)):
        folder = source / f'Tile {tile}'
        write_image(folder / 'images/image_part_001.jpg', SEG_SIDE + (3, ))
        labels = colour_tile(module.COLOURS,
                             folder / 'masks/image_part_001.png', tile)
        if part:
            wanted[f'{part}/tile{tile}_image_part_001.png'] = labels
    module.convert([str(source)], str(out), False, True)
    assert_same(read_all(out / 'annotations'), wanted)


def test_camvid_official(tmp_path: Path, converter) -> None:
    """PNG frames become JPEG, void becomes 255."""
    source, out = tmp_path / 'CamVid', tmp_path / 'out'
    for name in ('train', 'val'):
        Image.new('RGB', (4, 3),
                  (200, 30, 30)).save(_made(source / name) / 'f.png')
        mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
        Image.fromarray(mask).save(_made(source / f'{name}annot') / 'f.png')
    converter('camvid').convert([str(tmp_path)], str(out), False, True)
    mask = np.array(Image.open(out / 'annotations/validation/f.png'))
    assert mask.ravel().tolist() == [*range(11), 255]
    image = np.array(Image.open(out / 'images/training/f.jpg'))
    assert np.abs(image.astype(int) - [200, 30, 30]).max() < 8


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def break_size(root: Path) -> str:
    write_image(root / 'images/training/frame_training_001.jpg', (10, 12, 3))
    return 'is 12 x 10, its mask 64 x 48'


def break_label(root: Path) -> str:
    path = root / 'annotations/validation/frame_validation_001.png'
    Image.fromarray(np.full(SEG_SIDE, 11, np.uint8)).save(path)
    return 'holds label 11; allowed are 0 to 10 and 255'


def break_pair(root: Path) -> str:
    (root / 'annotations/training/frame_training_002.png').unlink()
    return '1 samples have no mask, the first is frame_training_002'


def break_other_pair(root: Path) -> str:
    (root / 'images/training/frame_training_002.jpg').unlink()
    return '1 samples have no image'


def break_image(root: Path) -> str:
    path = root / 'images/validation/frame_validation_000.jpg'
    path.write_bytes(path.read_bytes()[:200])
    return 'frame_validation_000.jpg cannot be decoded'


def break_mode(root: Path) -> str:
    path = root / 'annotations/training/frame_training_000.png'
    Image.new('RGB', SEG_SIDE[::-1]).save(path)
    return 'has mode RGB'


def break_layout(root: Path) -> str:
    shutil.rmtree(root / 'annotations')
    return 'has no known layout; looked for packed: images/training'


@pytest.mark.parametrize('breakage', [
    break_size, break_label, break_pair, break_other_pair, break_image,
    break_mode, break_layout
])
def test_broken_segmentation(breakage: Callable, tmp_path: Path, converter,
                             error) -> None:
    """One clear error, and nothing is left behind."""
    source = write_paired(tmp_path / 'in', 11)
    message = breakage(source)
    with pytest.raises(error) as caught:
        converter('camvid').convert([str(source)], str(tmp_path / 'out'),
                                    False, True)
    assert message in str(caught.value)
    assert_nothing_left(tmp_path / 'out')


def test_existing_target(tmp_path: Path, converter, error) -> None:
    source, out = write_paired(tmp_path / 'in', 11), tmp_path / 'out'
    out.mkdir()
    (out / 'precious').write_text('kept')
    convert = converter('camvid').convert
    with pytest.raises(error, match='--force'):
        convert([str(source)], str(out), False, True)
    assert (out / 'precious').read_text() == 'kept'
    # A failing replacement keeps the old data, too.
    break_label(source)
    with pytest.raises(error):
        convert([str(source)], str(out), True, True)
    assert (out / 'precious').read_text() == 'kept'
    write_mask(source / 'annotations/validation/frame_validation_001.png', 11)
    convert([str(source)], str(out), True, True)
    assert not (out / 'precious').exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in', 'out']


@pytest.mark.parametrize('kind', ['missing', 'text', 'tar.gz', 'zip'])
def test_broken_archive(kind: str, tmp_path: Path, converter, error) -> None:
    path = tmp_path / f'x.{kind}'
    if kind == 'text':
        path.write_text('hello')
    elif kind != 'missing':
        write_paired(tmp_path / 'in', 11)
        form = dict([('tar.gz', 'gztar'), ('zip', 'zip')])[kind]
        shutil.make_archive(str(tmp_path / 'x'), form, tmp_path / 'in')
        path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    with pytest.raises(error, match='x.' + kind):
        converter('camvid').convert([str(path)], str(tmp_path / 'out'), False,
                                    True)
    assert_nothing_left(tmp_path / 'out')


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_archive_cannot_write_outside(kind: str, tmp_path: Path, converter,
                                      error) -> None:
    inner, path = tmp_path / 'evil', tmp_path / f'x.{kind}'
    inner.write_text('evil')
    name = f'../../../../../../../../{tmp_path}/escaped'
    if kind == 'tar':
        with tarfile.open(path, 'w') as archive:
            archive.add(inner, name)
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.write(inner, name)
    with pytest.raises(error):
        converter('camvid').convert([str(path)], str(tmp_path / 'out'), False,
                                    True)
    assert not (tmp_path / 'escaped').exists()


def cifar_batches(root: Path, per_batch: int = 3) -> dict:
    """Write official batches; give the images by split."""
    rng, images = np.random.default_rng(0), dict(train=[], test=[])
    root.mkdir(parents=True)
    for name in [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']:
        data = rng.integers(0, 256, (per_batch, 3072), np.uint8)
        labels = rng.integers(0, 10, per_batch).tolist()
        (root / name).write_bytes(
            pickle.dumps({
                b'data': data,
                b'labels': labels
            }))
        split = 'test' if name == 'test_batch' else 'train'
        images[split] += list(zip(data, labels))
    return images


def test_cifar10_official(tmp_path: Path, converter) -> None:
    module, out = converter('cifar10'), tmp_path / 'out'
    images = cifar_batches(tmp_path / 'in' / 'cifar-10-batches-py')
    archive = shutil.make_archive(
        str(tmp_path / 'cifar'), 'gztar', tmp_path / 'in')
    module.convert([archive], str(out), False, True)
    for split, pairs in images.items():
        for number, (pixels, label) in enumerate(pairs):
            path = out / split / module.CLASSES[label] / f'{number:05d}.png'
            # Channel c of pixel (y, x) is at c * 1024 + y * 32 + x.
            image = np.array(Image.open(path))
            assert image[5, 7].tolist() == [
                pixels[c * 1024 + 5 * 32 + 7] for c in range(3)
            ]


def test_cifar10_pickle_cannot_run_code(tmp_path: Path, converter,
                                        error) -> None:
    root = tmp_path / 'in'
    cifar_batches(root)

    class Evil:

        def __reduce__(self):
            return Path.touch, (tmp_path / 'escaped', )

    (root / 'data_batch_3').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(error, match='data_batch_3 is no CIFAR-10 batch'):
        converter('cifar10').convert([str(root)], str(tmp_path / 'out'), False,
                                     True)
    assert not (tmp_path / 'escaped').exists()
    assert_nothing_left(tmp_path / 'out')


def test_cifar10_packed(tmp_path: Path, converter, error) -> None:
    module = converter('cifar10')
    source = write_class_folders(tmp_path / 'in', module.CLASSES, 32,
                                 dict(train=2, test=1))
    module.convert([str(source)], str(tmp_path / 'out'), False, True)
    assert_same(read_all(tmp_path / 'out'), read_all(source))
    write_image(source / 'train/cat/odd.jpg', (32, 31, 3))
    with pytest.raises(error, match='odd.jpg is 31 x 32, expected 32 x 32'):
        module.convert([str(source)], str(tmp_path / 'out2'), False, True)
    shutil.rmtree(source / 'train/cat')
    with pytest.raises(error, match=r"missing: \['cat'\]"):
        module.convert([str(source)], str(tmp_path / 'out2'), False, True)
    assert_nothing_left(tmp_path / 'out2')


def test_tiny_imagenet_official(tmp_path: Path, converter) -> None:
    """The first 100 of the sorted ids, validation labels from the list."""
    source, out = tmp_path / 'tiny-imagenet-200', tmp_path / 'out'
    wnids = [f'n{i:08d}' for i in range(102)]
    source.mkdir()
    (source / 'wnids.txt').write_text('\n'.join(reversed(wnids)))
    (source / 'words.txt').write_text(''.join(f'{w}\tname {w}, other\n'
                                              for w in wnids))
    lines = []
    for i, wnid in enumerate(wnids):
        write_image(source / 'train' / wnid / 'images' / f'{wnid}_0.JPEG',
                    (64, 64, 3), i)
        write_image(source / 'val/images' / f'val_{i}.JPEG', (64, 64, 3), i)
        lines.append(f'val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n')
    (source / 'val/val_annotations.txt').write_text(''.join(lines))
    converter('tiny_imagenet100').convert([str(source)], str(out), False, True)
    assert sorted(p.name for p in (out / 'train').iterdir()) == wnids[:100]
    for i in (0, 42, 99):
        assert (out / 'val' / wnids[i] / f'val_{i}.JPEG').is_file()
    rows = (out / 'classes.txt').read_text().splitlines()
    assert rows[42] == f'{wnids[42]}\tname {wnids[42]}, other'
    assert len(rows) == 100


def test_tiny_imagenet_several_archives(tmp_path: Path, converter,
                                        error) -> None:
    wnids = [f'n{i:08d}' for i in range(100)]
    archives = []
    for part, half in (('a', wnids[:50]), ('b', wnids[50:])):
        root = tmp_path / part / 'tiny'
        write_class_folders(root, half, 64, dict(train=1, val=1), '.JPEG')
        (root / 'classes.txt').write_text(''.join(f'{w}\tname\n'
                                                  for w in wnids))
        archives.append(
            shutil.make_archive(
                str(tmp_path / f'tiny_{part}'), 'xztar', tmp_path / part))
    convert, out = converter('tiny_imagenet100').convert, tmp_path / 'out'
    with pytest.raises(error, match='missing'):
        convert(archives[:1], str(out), False, False)
    assert_nothing_left(out)
    convert(archives, str(out), False, True)
    assert len(list((out / 'train').iterdir())) == 100
    convert(archives[:1], str(out), True, True)
    assert len((out / 'classes.txt').read_text().splitlines()) == 50


def test_fashion_mnist(tmp_path: Path, converter, error) -> None:
    pytest.importorskip('mmpretrain')
    module, source = converter('fashion_mnist'), tmp_path / 'in'
    write_fashion_mnist(source)
    module.convert([str(source)], str(tmp_path / 'out'), False, True)
    for path in source.iterdir():
        copy = tmp_path / 'out' / path.name
        assert copy.read_bytes() == path.read_bytes()
    with pytest.raises(error, match='8 found, the whole set has 60000'):
        module.convert([str(source)], str(tmp_path / 'out2'), False, False)
    broken = source / 't10k-images-idx3-ubyte.gz'
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(error, match='broken gzip'):
        module.convert([str(source)], str(tmp_path / 'out2'), False, True)
    assert_nothing_left(tmp_path / 'out2')


def test_command_line(tmp_path: Path) -> None:
    """The scripts run from anywhere; an error is one line."""
    source = write_paired(tmp_path / 'in', 11)
    command = [sys.executable, str(FOLDER / 'camvid.py'), str(source)]
    run = subprocess.run(
        command + ['--out', 'here', '--partial'],
        cwd=tmp_path,
        capture_output=True,
        text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == 'here: 4 training, 2 validation\n'
    run = subprocess.run(
        command + ['--out', 'here'],
        cwd=tmp_path,
        capture_output=True,
        text=True)
    assert run.returncode == 1
    assert run.stderr == 'error: here exists; --force replaces it\n'


def test_real_ade20k_sample(tmp_path: Path, real_data, converter) -> None:
    source = real_data('ade20k_sample')
    converter('ade20k').convert([str(source)], str(tmp_path / 'out'), False,
                                True)
    assert_same(read_all(tmp_path / 'out'), read_all(source))
