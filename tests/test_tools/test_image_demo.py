"""demo/image_demo.py: pictures from tiny models, and every kind of bad input.

Most tests call ``main`` in this process: starting the whole stack anew takes
seconds. What a fresh process prints is checked once, at the end.
"""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evil import spoil
from PIL import Image

pytest.importorskip('mmseg', reason='the demo needs mmsegmentation')
pytest.importorskip('mmpretrain', reason='the demo needs mmpretrain')

BACKBONE = """
    backbone=dict(
        type='fma_vision.FMATransformer',
        arch=dict(embed_dims=[8, 16], depths=[1, 1], num_heads=[1, 2]),
        attn=dict(type='FMAttention2D', cell_size=4),
        out_indices={out}),
"""
SEGMENTATION = """
default_scope = 'mmseg'
custom_imports = dict(imports=['fma_vision.models', 'fma_vision.datasets'],
                      allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.7, 116.3, 103.5],
        std=[58.4, 57.1, 57.4], bgr_to_rgb=True, pad_val=0, seg_pad_val=255),
""" + BACKBONE.format(out='(0, 1)') + """
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=1, channels=8, num_convs=1,
        num_classes=3, norm_cfg=dict(type='SyncBN')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 48), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(
    type='BaseSegDataset', pipeline=test_pipeline,
    metainfo=dict(classes=['sky', 'wall', 'tree'],
                  palette=[[0, 0, 250], [250, 0, 0], [0, 250, 0]])))
"""
CLASSIFICATION = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['fma_vision.models'],
                      allow_failed_imports=False)
data_preprocessor = dict(
    mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True,
    num_classes=10)
model = dict(
    type='ImageClassifier',
""" + BACKBONE.format(out='(1, )') + """
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16,
              loss=dict(type='CrossEntropyLoss')))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=40, edge='short'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(type='CIFAR10', pipeline=test_pipeline))
"""


@pytest.fixture(scope='module')
def demo(load_script):
    return load_script('demo/image_demo.py')


@pytest.fixture(scope='module')
def models(tmp_path_factory, demo):
    """Configs and random weights: seg.py, seg.pth, cls.py, cls.pth."""
    import fma_vision.registry  # noqa: F401
    folder = tmp_path_factory.mktemp('models')
    for name, text in (('seg', SEGMENTATION), ('cls', CLASSIFICATION)):
        config = folder / f'{name}.py'
        config.write_text(text)
        torch.manual_seed(1)
        model, _ = demo.build_model(demo.load_config(config))
        torch.save(
            dict(state_dict=model.state_dict(), meta={}),
            folder / f'{name}.pth')
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two photographs of different shapes, and two broken files."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (('a.png', (40, 60, 3)), ('b.jpg', (70, 31, 3))):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / 'cut.jpg').write_bytes((folder / 'b.jpg').read_bytes()[:-1500])
    (folder / 'text.png').write_text('no image')
    return folder


@pytest.fixture
def run(demo, models, capsys):
    """Runs the demo; returns its exit status, output and error lines."""

    def call(*args, model='seg', config=None, checkpoint=None):
        status = demo.main([
            str(args[0]),
            str(config or models / f'{model}.py'),
            str(checkpoint or models / f'{model}.pth'), '--device', 'cpu',
            *map(str, args[1:])
        ])
        captured = capsys.readouterr()
        return (status, captured.out.strip().splitlines(),
                captured.err.strip().splitlines())

    return call


def saved_with(models, path, **changes):
    """The segmentation checkpoint with some entries replaced."""
    saved = torch.load(models / 'seg.pth', weights_only=False)
    saved.update(changes)
    torch.save(saved, path)
    return path


# ------------------------------------------------------------- it works


def test_segments_one_image(run, photos, tmp_path):
    status, out, err = run(photos / 'a.png', '--out', tmp_path / 'new' / 'out')
    assert (status, err) == (0, [])
    assert len(out) == 1 and out[0].startswith('a.png: ')
    with Image.open(tmp_path / 'new' / 'out' / 'a.png') as picture:
        # Two panels of the photograph's shape, and a legend.
        assert picture.width > 2 * picture.height


def test_out_with_an_image_suffix_is_the_file(run, photos, tmp_path):
    target = tmp_path / 'one.jpg'
    assert run(photos / 'b.jpg', '--out', target)[0] == 0
    with Image.open(target) as picture:
        assert picture.format == 'JPEG'


def test_classifies_with_the_datasets_names(run, photos, tmp_path):
    status, out, err = run(
        photos / 'a.png', '--out', tmp_path / 'out', model='cls')
    assert (status, err) == (0, [])
    names = {
        entry.split(' ')[0]
        for entry in out[0].split(': ')[1].split(', ')
    }
    assert len(names) == 5
    assert names < {
        'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog',
        'horse', 'ship', 'truck'
    }
    assert (tmp_path / 'out' / 'a.png').is_file()


def test_folder_goes_on_after_broken_files(run, photos, tmp_path):
    status, out, err = run(photos, '--out', tmp_path / 'out')
    assert status == 1
    assert out[-1] == '2 of 4 images done'
    assert [line.split(': ')[1].rsplit('/', 1)[1]
            for line in err] == ['cut.jpg', 'text.png']
    assert sorted(p.name
                  for p in (tmp_path / 'out').iterdir()) == ['a.png', 'b.png']


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_every_damaged_file_is_named(suffix, run, photos, tmp_path):
    """The good ones, first, in between and last, are done."""
    folder = tmp_path / 'many'
    folder.mkdir()
    with Image.open(photos / 'a.png') as image:
        image.save(tmp_path / f'good{suffix}')
    good = (tmp_path / f'good{suffix}').read_bytes()
    noise = np.random.default_rng(0).bytes(len(good))
    damaged = (b'', good[:10], good[:len(good) // 2], b'no image',
               good[:40] + noise[40:])
    for i, data in enumerate((good, *damaged[:3], good, *damaged[3:], good)):
        (folder / f'{i}{suffix}').write_bytes(data)
    status, out, err = run(folder, '--out', tmp_path / 'out')
    assert status == 1 and out[-1] == '3 of 8 images done'
    names = [Path(line.split(': ')[1]).stem for line in err]
    assert names == ['1', '2', '3', '5', '6']


def test_glob(run, photos, tmp_path):
    status, out, _ = run(photos / '[ab].*', '--out', tmp_path / 'out')
    assert status == 0 and out[-1] == '2 of 2 images done'


def test_segmentation_equals_the_hosts_inference(demo, models, photos):
    from mmseg.apis import inference_model, init_model
    ours = demo.Predictor(models / 'seg.py', models / 'seg.pth', 'cpu')
    host = init_model(str(models / 'seg.py'), device='cpu')
    host.load_state_dict(ours.model.state_dict())
    path = photos / 'a.png'
    expected = inference_model(host, str(path)).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1  # else the comparison says little
    np.testing.assert_array_equal(ours(demo.read_image(path)), expected)


def test_classification_equals_the_hosts_inference(demo, models, photos):
    from mmpretrain import ImageClassificationInferencer
    ours = demo.Predictor(models / 'cls.py', models / 'cls.pth', 'cpu')
    host = ImageClassificationInferencer(
        str(models / 'cls.py'),
        pretrained=str(models / 'cls.pth'),
        device='cpu')
    path = photos / 'a.png'
    expected = host(str(path))[0]['pred_scores']
    np.testing.assert_allclose(
        ours(demo.read_image(path)), expected, rtol=1e-5)


@pytest.mark.parametrize('text', [
    CLASSIFICATION.replace('LoadImageFromFile', 'fma_vision.LoadCachedImage'),
    CLASSIFICATION.replace(
        "dataset=dict(type='CIFAR10', pipeline=test_pipeline)",
        "dataset=dict(type='fma_vision.ConcatDataset', "
        "datasets=[dict(type='CIFAR10')], pipeline=test_pipeline)"),
])
def test_other_loading_and_joined_sets(demo, models, photos, text):
    """Colours are not swapped, no step is lost."""
    config = models / 'other.py'
    config.write_text(
        text.replace("imports=['fma_vision.models']",
                     "imports=['fma_vision.models', "
                     "'fma_vision.datasets']"))
    image = demo.read_image(photos / 'a.png')
    found, wanted = (
        demo.Predictor(path, models / 'cls.pth', 'cpu')(image)
        for path in (config, models / 'cls.py'))
    np.testing.assert_array_equal(found, wanted)


def test_overlay_opacity(demo):
    image = np.full((2, 3, 3), 100, np.uint8)
    classes = demo.Classes(('x', 'y'),
                           np.array([[0, 0, 0], [200, 50, 0]], np.uint8))
    prediction = np.array([[0, 1, 255], [1, 1, 0]])

    def paint(opacity):
        return demo.overlay(image, prediction, classes, opacity)

    np.testing.assert_array_equal(paint(0.), image)
    assert paint(1.)[0].tolist() == [[0, 0, 0], [200, 50, 0], [100, 100, 100]]
    assert paint(.5)[0].tolist() == [[50, 50, 50], [150, 75, 50],
                                     [100, 100, 100]]
    rows = demo.summary(prediction, classes)
    assert [row[1] for row in rows] == ['y', 'x']
    assert [row[2] for row in rows] == pytest.approx([3 / 6, 2 / 6])


def test_names_saved_with_the_weights_win(run, models, photos, tmp_path):
    meta = dict(
        dataset_meta=dict(
            classes=('one', 'two', 'three'),
            palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    path = saved_with(models, tmp_path / 'named.pth', meta=meta)
    status, out, _ = run(
        photos / 'a.png', '--out', tmp_path / 'out', checkpoint=path)
    assert status == 0
    seen = {part.split(' ')[0] for part in out[0].split(': ')[1].split(', ')}
    assert seen <= {'one', 'two', 'three'}


def test_training_checkpoint_loads(run, models, photos, tmp_path):
    """Its log history is not tensors, and must not need pickled code."""
    from mmengine.logging import HistoryBuffer
    history = HistoryBuffer()
    history.update(0.5)
    path = saved_with(
        models, tmp_path / 'epoch_1.pth', message_hub={'loss': history})
    assert run(
        photos / 'a.png', '--out', tmp_path / 'out', checkpoint=path)[0] == 0


def test_pictures_never_overwrite_each_other(demo):

    def names(*paths):
        found = demo.output_paths([Path(p) for p in paths], 'out')
        return [path.as_posix() for path in found]

    assert names('x/a.jpg', 'x/b.png') == ['out/a.png', 'out/b.png']
    assert names('x/a.jpg', 'x/a.png') == ['out/a.jpg.png', 'out/a.png.png']
    assert len(set(names('x/a.jpg', 'y/a.jpg', 'z/b.jpg'))) == 3


def test_photographs_of_every_kind_become_rgb(demo, tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    rgb = np.repeat(grey[..., None], 3, -1)
    for name, picture in {
            'grey.png': Image.fromarray(grey),
            'alpha.png': Image.fromarray(rgb).convert('RGBA'),
            'palette.png': Image.fromarray(grey).convert('P'),
            'deep.png': Image.fromarray(grey.astype(np.uint16) * 257)
    }.items():
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(
            demo.read_image(tmp_path / name), rgb, err_msg=name)
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    Image.fromarray(rgb).save(tmp_path / 'side.png', exif=exif)
    np.testing.assert_array_equal(
        demo.read_image(tmp_path / 'side.png'), np.rot90(rgb, -1))


# ------------------------------------------- other channels, huge images

BANDS = 4


@pytest.fixture(scope='module')
def bands(tmp_path_factory, demo):
    """Models of four bands, segmenting and classifying."""
    folder = tmp_path_factory.mktemp('bands')
    for name, text in (('seg', SEGMENTATION), ('cls', CLASSIFICATION)):
        for old, new in (
            ("dict(type='LoadImageFromFile')",
             "dict(type='LoadImageFromFile', color_type='unchanged')"),
            ("arch=dict(", f'in_channels={BANDS}, arch=dict('),
            ('mean=[123.7, 116.3, 103.5]', 'mean=[32000.]'),
            ('std=[58.4, 57.1, 57.4]', 'std=[19000.]'),
        ):
            assert old in text
            text = text.replace(old, new)
        config = folder / f'{name}.py'
        config.write_text(text)
        torch.manual_seed(1)
        model, _ = demo.build_model(demo.load_config(config))
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
    return folder


def write_bands(path, count=BANDS, dtype=np.uint16, shape=(40, 60)):
    """A TIFF file of several bands."""
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(
        0, top, (*shape, count), dtype=dtype)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize('model', ['seg', 'cls'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_four_bands(model, dtype, run, bands, tmp_path):
    path = tmp_path / 'a.tif'
    if dtype is np.float32:
        assert cv2.imwrite(str(path), np.ones((40, 60, BANDS), np.float32))
    else:
        write_bands(path, dtype=dtype)
    out = tmp_path / 'out'
    status, lines, err = run(
        path,
        '--out',
        out,
        config=bands / f'{model}.py',
        checkpoint=bands / f'{model}.pth')
    assert (status, err, len(lines)) == (0, [], 1)
    assert (out / 'a.png').is_file()


def test_four_bands_equal_the_hosts_inference(demo, bands, tmp_path):
    from mmseg.apis import inference_model, init_model
    path = write_bands(tmp_path / 'a.tif')
    ours = demo.Predictor(bands / 'seg.py', bands / 'seg.pth', 'cpu')
    host = init_model(str(bands / 'seg.py'), device='cpu')
    host.load_state_dict(ours.model.state_dict())
    expected = inference_model(host, str(path)).pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(ours(ours.read(path, 1.)), expected)


def test_other_channels_than_the_model_takes(run, bands, photos, tmp_path):
    """Named, and the images that fit are done."""
    write_bands(photos / 'deep.tif')
    status, out, err = run(
        photos,
        '--out',
        tmp_path / 'out',
        config=bands / 'seg.py',
        checkpoint=bands / 'seg.pth')
    assert status == 1 and out[-1] == '1 of 5 images done'
    for name in ('a.png', 'b.jpg'):
        line = next(line for line in err if name in line)
        assert ('the image has 3 channels, the model takes 4 '
                '(model.backbone.in_channels)') in line
    assert 'text.png: not a readable image' in ' '.join(err)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('count', [1, 3, 4])
def test_deep_tiff_for_a_model_of_photographs(count, dtype, demo, tmp_path):
    path = write_bands(tmp_path / 'a.tif', count, dtype)
    image = demo.read_image(path)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    pixels = np.atleast_3d(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    expected = pixels[..., 2::-1] if count > 1 else pixels
    shift = 8 if dtype is np.uint16 else 0
    assert np.abs(image.astype(int) - (expected >> shift)).max() <= 1


def test_bands_become_a_picture(demo):
    grey = np.arange(200, dtype=np.uint16).reshape(10, 20) * 100
    shown = demo.visible(grey, bgr=True)
    assert shown.shape == (10, 20, 3) and shown.dtype == np.uint8
    assert shown.min() == 0 and shown.max() == 255
    bands = np.arange(4, dtype=np.uint8) + np.zeros((2, 2, 4), np.uint8)
    assert demo.visible(bands, bgr=True)[0, 0].tolist() == [2, 1, 0]
    assert demo.visible(bands, bgr=False)[0, 0].tolist() == [0, 1, 2]
    assert demo.visible(bands[..., :2], False)[0, 0].tolist() == [0, 0, 0]


def test_the_limit_on_huge_images(run, photos, tmp_path):
    args = photos / 'a.png', '--out', tmp_path / 'out'
    status, _, err = run(*args, '--max-megapixels', '0.0023')
    assert status == 1
    assert '60 x 40 pixels are more than --max-megapixels 0.0023' in err[0]
    assert run(*args, '--max-megapixels', '0.0024')[0] == 0


def test_pillows_own_limit_is_raised(demo, photos, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert demo.read_image(photos / 'a.png').shape == (40, 60, 3)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(photos / 'a.png')


def test_huge_images_work_tile_by_tile(demo, run, photos, tmp_path,
                                       monkeypatch):
    shapes = []
    call = demo.Predictor.__call__
    monkeypatch.setattr(demo, 'MAX_MEGAPIXELS', .002)
    monkeypatch.setattr(demo, 'TILE', 16)
    monkeypatch.setattr(demo, 'DRAWN', 500)
    monkeypatch.setattr(
        demo.Predictor, '__call__', lambda self, image:
        (shapes.append(image.shape[:2]), call(self, image))[1])
    args = photos / 'a.png', '--out', tmp_path / 'out'
    assert run(*args)[0] == 1  # refused without the option
    status, out, err = run(*args, '--max-megapixels', '1')
    assert (status, err, len(out)) == (0, [], 1)
    assert len(shapes) > 8 and set(shapes) == {(16, 16)}
    # A classifier shrinks it anyway.
    del shapes[:]
    assert run(*args, '--max-megapixels', '1', model='cls')[0] == 0
    assert shapes == [(40, 60)]


@pytest.mark.parametrize('size', [1, 7, 16, 17, 28, 29, 100])
@pytest.mark.parametrize('tile', [1, 3, 16, 64])
def test_tiles_cover_each_pixel_once(demo, size, tile):
    done = 0
    for start, edge, stop in demo.pieces(size, tile):
        assert edge == done and start <= edge < stop <= start + tile
        assert start == 0 or start + tile <= size
        # What is kept has surroundings, except where the image ends.
        assert start == 0 or edge - start >= tile // 8
        assert stop == size or start + tile - stop == tile // 8
        done = stop
    assert done == size


def test_tiles_are_put_where_they_belong(demo, models):
    predictor = demo.Predictor(models / 'seg.py', models / 'seg.pth', 'cpu')
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    tiled = predictor.tiles(image, 32)
    assert tiled.shape == (50, 70) and tiled.dtype == np.uint8
    last = predictor(image[18:, 38:])
    np.testing.assert_array_equal(tiled[-12:, -12:], last[-12:, -12:])
    np.testing.assert_array_equal(predictor.tiles(image, 70), predictor(image))


# ------------------------------------------------------------ bad input


def test_checkpoint_never_runs_code(run, models, photos, tmp_path):
    path = spoil(models / 'seg.pth', tmp_path / 'evil.pth', tmp_path / 'proof')
    status, _, err = run(photos / 'a.png', checkpoint=path)
    assert status == 2 and len(err) == 1
    assert 'holds code besides weights' in err[0]
    assert not (tmp_path / 'proof').exists()


@pytest.mark.parametrize('source, words', [
    ('https://example.org/a.jpg', 'is a URL'),
    ('nowhere.jpg', "no image at 'nowhere.jpg'"),
    ('nowhere/*.jpg', "no image at 'nowhere/*.jpg'"),
])
def test_bad_image_argument(run, source, words):
    status, out, err = run(source)
    assert (status, out, len(err)) == (2, [], 1)
    assert words in err[0]


def test_empty_folder(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    status, _, err = run(tmp_path / 'empty')
    assert status == 2 and 'holds no image' in err[0]


def test_one_broken_image(run, photos, tmp_path):
    for name in ('cut.jpg', 'text.png'):
        status, out, err = run(photos / name, '--out', tmp_path / 'out')
        assert (status, out, len(err)) == (1, [], 1)
        assert 'not a readable image' in err[0]


def test_one_file_for_many_images(run, photos):
    status, _, err = run(photos, '--out', 'one.png')
    assert status == 2 and "--out 'one.png' names one file" in err[0]


def test_missing_and_broken_config(run, photos, tmp_path):
    status, _, err = run(photos / 'a.png', config='nowhere.py')
    assert status == 2 and err == ["error: no config at 'nowhere.py'"]
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(')
    status, _, err = run(photos / 'a.png', config=broken)
    assert status == 2 and len(err) == 1 and 'cannot be read' in err[0]
    broken.write_text('lr = 1')
    status, _, err = run(photos / 'a.png', config=broken)
    assert status == 2 and "has no 'model'" in err[0]


def test_missing_and_damaged_checkpoint(run, models, photos, tmp_path):
    status, _, err = run(photos / 'a.png', checkpoint='nowhere.pth')
    assert status == 2 and err == ["error: no checkpoint at 'nowhere.pth'"]
    cut = tmp_path / 'cut.pth'
    for content in (b'', b'text', (models / 'seg.pth').read_bytes()[:5000]):
        cut.write_bytes(content)
        status, _, err = run(photos / 'a.png', checkpoint=cut)
        assert status == 2 and len(err) == 1 and 'is damaged' in err[0]


def test_checkpoint_of_another_model(run, models, photos, tmp_path):
    status, _, err = run(photos / 'a.png', checkpoint=models / 'cls.pth')
    assert status == 2 and len(err) == 1
    assert 'does not match the config' in err[0] and 'missing' in err[0]
    state = torch.load(models / 'seg.pth')['state_dict']
    state = dict(state)
    state['decode_head.conv_seg.weight'] = torch.zeros(19, 8, 1, 1)
    path = saved_with(models, tmp_path / 'other.pth', state_dict=state)
    status, _, err = run(photos / 'a.png', checkpoint=path)
    assert status == 2 and '(19, 8, 1, 1)' in err[0] and '(3, ' in err[0]


@pytest.mark.parametrize('names, words', [
    ("['sky', 'wall']", 'the model has 3 classes, but 2 names are known'),
    ('None', 'the model has 3 classes, but none is named'),
])
def test_unknown_class_names(run, photos, tmp_path, names, words):
    """A guess from the count alone would print wrong names."""
    config = tmp_path / 'unnamed.py'
    config.write_text(SEGMENTATION.replace("['sky', 'wall', 'tree']", names))
    status, _, err = run(photos / 'a.png', config=config)
    assert status == 2 and len(err) == 1 and words in err[0]


def test_bad_device(run, photos):
    status, _, err = run(photos / 'a.png', '--device', 'abacus')
    assert status == 2 and "--device 'abacus'" in err[0]


@pytest.mark.parametrize('args, words', [
    (['a.jpg', 'config.py'], 'belong together'),
    (['a.jpg', '--opacity', '1.5'], '--opacity is 1.5'),
])
def test_bad_arguments(demo, capsys, args, words):
    with pytest.raises(SystemExit) as exit_info:
        demo.main(args)
    assert exit_info.value.code == 2
    assert words in capsys.readouterr().err


# ----------------------------------------------------- in a fresh process


def test_default_run_is_clean_and_right(demo, repo_root, tmp_path):
    """`make demo`: the shipped weights on a photograph nobody labelled.

    Into a folder whose name the console cannot print.
    """
    pytest.importorskip('sklearn', reason='its photograph is the input')
    result = subprocess.run(
        [
            sys.executable, repo_root / 'demo' / 'image_demo.py', '--device',
            'cpu', '--out', tmp_path / '写真'
        ],
        cwd=tmp_path,  # paths must not depend on where one stands
        capture_output=True,
        text=True,
        env={
            **os.environ, 'PYTHONIOENCODING': 'cp1252'
        })
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    assert len(result.stdout.splitlines()) == 1
    for name in ('sky', 'building', 'vegetation'):
        assert name in result.stdout
    assert r'\u5199\u771f' in result.stdout
    assert (tmp_path / '写真' / 'china.png').is_file()


def test_help_says_how(repo_root):
    result = subprocess.run(
        [sys.executable, repo_root / 'demo' / 'image_demo.py', '--help'],
        capture_output=True,
        text=True)
    assert result.returncode == 0
    assert '--opacity' in result.stdout
