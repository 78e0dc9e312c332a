"""tools/analysis_tools/browse_dataset.py and tools/misc/print_config.py."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from synthetic import SEG_SIDE, write_fashion_mnist, write_paired

from fma_vision.datasets import CamVidDataset
from fma_vision.engine import UserError, load_config

ROOT = Path(__file__).parents[2]
SEG = str(next((ROOT / 'configs/camvid').glob('fma-nano*.py')))
CLS = str(next((ROOT / 'configs/fashion_mnist').glob('fma-nano*.py')))


@pytest.fixture(scope='module')
def tool(load_script):
    return load_script('tools/analysis_tools/browse_dataset.py')


def browse(tool, config: str, out: Path, *args: str) -> list:
    return tool.browse(tool.parse_args([config, '--out', str(out), *args]))


def test_segmentation(tool, tmp_path) -> None:
    """Left the photograph, right its classes in the set's colours."""
    write_paired(tmp_path, 11)
    files = browse(tool, SEG, tmp_path / 'out', '--phase', 'val', '--opacity',
                   '1', '--cfg-options',
                   f'val_dataloader.dataset.data_root={tmp_path}',
                   'val_dataloader.dataset.pipeline.1.scale=(64,48)')
    assert len(files) == 2
    for i, file in enumerate(files):
        picture = np.array(Image.open(file))
        height, width = SEG_SIDE
        assert picture.shape == (height, 2 * width, 3)
        left, right = picture[:, :width], picture[:, width:]
        stem = f'frame_validation_{i:03d}'
        photo = Image.open(tmp_path / f'images/validation/{stem}.jpg')
        # Decoders of JPEG differ by a few levels; swapped channels by more.
        difference = left.astype(int) - np.array(photo)
        assert np.abs(difference).mean() < 2
        mask = np.array(
            Image.open(tmp_path / f'annotations/validation/{stem}.png'))
        palette = np.array(CamVidDataset.METAINFO['palette'])
        known = mask != 255
        np.testing.assert_array_equal(right[known], palette[mask[known]])
        np.testing.assert_array_equal(right[~known], left[~known])


def test_training_pipeline(tool, tmp_path) -> None:
    write_paired(tmp_path, 11)
    files = browse(tool, SEG, tmp_path / 'out', '--number', '3',
                   '--cfg-options',
                   f'train_dataloader.dataset.data_root={tmp_path}')
    assert len(files) == 3
    for file in files:
        height, width, _ = np.array(Image.open(file)).shape
        assert height <= 360 and width <= 2 * 480


def test_classification(tool, tmp_path) -> None:
    """Small images are enlarged and captioned with the class."""
    write_fashion_mnist(tmp_path)
    files = browse(tool, CLS, tmp_path / 'out', '--phase', 'test',
                   '--cfg-options',
                   f'test_dataloader.dataset.data_root={tmp_path}',
                   'test_dataloader.dataset.expected_length=4')
    assert len(files) == 4
    from fma_vision.datasets.idx import read_idx
    images = read_idx(tmp_path / 't10k-images-idx3-ubyte.gz')
    captions = set()
    for file, image in zip(files, images):
        picture = np.array(Image.open(file))
        assert picture.shape == (196 + 16, 196, 3)
        np.testing.assert_array_equal(picture[3:196:7, 3::7, 0], image)
        caption = picture[196:]
        assert caption.min() < 128 < caption.max()
        captions.add(caption.tobytes())
    # T-shirt, trouser, pullover, dress: four different texts.
    assert len(captions) == 4


def test_errors(tool, tmp_path) -> None:
    with pytest.raises(UserError, match='no such folder'):
        browse(tool, SEG, tmp_path, '--cfg-options',
               'train_dataloader.dataset.data_root=nowhere')
    write_paired(tmp_path, 11)
    root = f'train_dataloader.dataset.data_root={tmp_path}'
    with pytest.raises(UserError, match='--number is 0'):
        browse(tool, SEG, tmp_path, '--number', '0', '--cfg-options', root)
    with pytest.raises(UserError, match='--opacity is 2'):
        browse(tool, SEG, tmp_path, '--opacity', '2', '--cfg-options', root)
    with pytest.raises(UserError, match='has no val_dataloader'):
        browse(tool, SEG, tmp_path, '--phase', 'val', '--cfg-options',
               'val_dataloader=None')


def print_config(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable,
         str(ROOT / 'tools/misc/print_config.py'), *args],
        capture_output=True,
        text=True,
        env={
            **os.environ, 'OMP_NUM_THREADS': '1'
        })


def test_print_config(tmp_path) -> None:
    """What it prints is the config: reading it gives the same."""
    saved = tmp_path / 'deep' / 'saved.py'
    run = print_config(SEG, '--cfg-options', 'train_cfg.max_iters=7',
                       '--save-path', str(saved))
    assert run.returncode == 0 and run.stderr == ''
    printed = tmp_path / 'printed.py'
    printed.write_text(run.stdout)
    wanted = load_config(SEG, {'train_cfg.max_iters': 7})
    for path in (printed, saved):
        assert load_config(str(path))._cfg_dict == wanted._cfg_dict
    assert wanted.train_cfg.max_iters == 7


@pytest.mark.slow
def test_print_config_errors(tmp_path) -> None:
    run = print_config('no.py')
    assert run.returncode == 1
    assert run.stderr == 'error: no config file no.py\n'
    run = print_config(SEG, '--save-path', str(tmp_path / 'x.txt'))
    assert run.returncode == 1
    assert run.stderr.startswith('error: --save-path') and \
        run.stderr.count('\n') == 1
