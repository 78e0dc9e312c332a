"""Tiny files in the layouts of the real data sets, and configs for them."""

import gzip
import os
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from PIL import Image

LISTS = Path(__file__).parents[1] / 'fma_vision' / 'datasets' / 'splits'
SEG_SIDE = (48, 64)


def write_image(path: Path, shape: Sequence[int], seed: int = 0) -> None:
    """Write noise as an image.

    Args:
        path (Path): Target; parent folders are made.
        shape (sequence[int]): ``(H, W, 3)`` or ``(H, W)``.
        seed (int): Of the noise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(noise).save(path)


def write_mask(path: Path,
               num_classes: int,
               shape: Sequence[int] = SEG_SIDE,
               seed: int = 0) -> np.ndarray:
    """Write vertical bands of random classes, the last column ignored.

    Args:
        path (Path): Target; parent folders are made.
        num_classes (int): Labels drawn.
        shape (sequence[int]): ``(H, W)``.
        seed (int): Of the draw.

    Returns:
        ndarray: The mask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).integers(0, num_classes, 8)
    row = labels[np.arange(shape[1]) * 8 // shape[1]]
    mask = np.broadcast_to(row, shape).astype(np.uint8)
    mask[:, -1] = 255
    Image.fromarray(mask).save(path)
    return mask


def write_paired(root: Path,
                 num_classes: int,
                 training: int = 4,
                 validation: int = 2,
                 prefix: str = 'frame') -> Path:
    """Write ``{images,annotations}/{training,validation}``.

    Args:
        root (Path): Root of the layout.
        num_classes (int): Labels in the masks.
        training (int): Number of training samples.
        validation (int): Number of validation samples.
        prefix (str): Of the file names.

    Returns:
        Path: ``root``.
    """
    for part, number in (('training', training), ('validation', validation)):
        for i in range(number):
            stem = f'{prefix}_{part}_{i:03d}'
            write_image(root / 'images' / part / f'{stem}.jpg',
                        SEG_SIDE + (3, ), i)
            write_mask(root / 'annotations' / part / f'{stem}.png',
                       num_classes, SEG_SIDE, i)
    return root


def write_labelmefacade(root: Path) -> Path:
    """Write every name of the committed lists, all with the same pixels.

    Args:
        root (Path): Root of the layout.

    Returns:
        Path: ``root``.
    """
    write_image(root / 'seed.jpg', SEG_SIDE + (3, ))
    write_mask(root / 'seed.png', 8)
    for part in ('training', 'validation'):
        (root / 'images' / part).mkdir(parents=True)
        (root / 'annotations' / part).mkdir(parents=True)
    for name in ('train', 'val'):
        lines = (LISTS / f'labelmefacade_{name}.txt').read_text().split()
        for line in lines:
            os.link(root / 'seed.jpg', root / 'images' / f'{line}.jpg')
            os.link(root / 'seed.png', root / 'annotations' / f'{line}.png')
    return root


def write_class_folders(root: Path,
                        folders: Sequence[str],
                        side: int,
                        splits: dict,
                        suffix: str = '.jpg') -> Path:
    """Write ``<split>/<folder>/<image>``.

    Args:
        root (Path): Root of the layout.
        folders (sequence[str]): Names of the class folders.
        side (int): Height and width.
        splits (dict[str, int]): Images per class by split.
        suffix (str): Of the images.

    Returns:
        Path: ``root``.
    """
    for split, number in splits.items():
        for label, folder in enumerate(folders):
            for i in range(number):
                write_image(
                    root / split / folder / f'{folder}_{i}{suffix}',
                    (side, side, 3),
                    seed=label)
    return root


def write_tiny_imagenet(root: Path) -> Path:
    """Write 100 class folders and ``classes.txt``.

    Args:
        root (Path): Root of the layout.

    Returns:
        Path: ``root``.
    """
    wnids = [f'n{i:08d}' for i in range(100)]
    write_class_folders(root, wnids, 64, dict(train=1, val=1), '.JPEG')
    lines = [f'{wnid}\tclass {i}, other name' for i, wnid in enumerate(wnids)]
    (root / 'classes.txt').write_text('\n'.join(lines) + '\n')
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of unsigned bytes as an IDX file.

    Args:
        array (ndarray): uint8.

    Returns:
        bytes: The file's content.
    """
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def write_fashion_mnist(root: Path,
                        train: int = 8,
                        test: int = 4,
                        compressed: bool = True) -> Path:
    """Write the four IDX files.

    Args:
        root (Path): Folder.
        train (int): Training images.
        test (int): Test images.
        compressed (bool): With gzip.

    Returns:
        Path: ``root``.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, number in (('train', train), ('t10k', test)):
        arrays = dict(
            images=rng.integers(0, 256, (number, 28, 28), np.uint8),
            labels=(np.arange(number) % 10).astype(np.uint8))
        for kind, array in arrays.items():
            name = f'{prefix}-{kind}-idx{array.ndim}-ubyte'
            data = idx_bytes(array)
            if compressed:
                (root / f'{name}.gz').write_bytes(gzip.compress(data))
            else:
                (root / name).write_bytes(data)
    return root


def write_texts(root: Path, words: int = 400) -> Path:
    """Write every text, with the 65 symbols of Tiny Shakespeare.

    Args:
        root (Path): Folder.
        words (int): Length of each text.

    Returns:
        Path: ``root``.
    """
    rng = np.random.default_rng(0)
    symbols = ''.join(map(chr, range(33, 97)))
    text = symbols + ' ' + ' '.join(symbols[i:i + 4]
                                    for i in rng.integers(0, 60, words))
    for name in ('tinyshakespeare/input.txt', 'books/train.txt',
                 'books/valid.txt', 'enwik8/enwik8', 'text/any name.txt'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# Sets whose configs say how many samples to read.
SAMPLED = ('ListOpsDataset', 'TextClassificationDataset')
LISTOPS = (('[MAX 2 9 [MIN 4 7 ] 0 ]', 9), ('[SM 8 [MED 1 2 ] 5 ]', 4),
           ('[MIN [SM 9 9 ] 3 [MAX 1 0 ] 4 ]', 1), ('[MED 7 3 ]', 5))


def write_sequences(root: Path) -> Path:
    """Write every set of labelled sequences: short ones of many lengths.

    Args:
        root (Path): Folder.

    Returns:
        Path: ``root``.
    """
    from fma_vision.datasets.classification import CIFAR10_CLASSES
    lines = ''.join(f'{text}\t{value}\n' for text, value in LISTOPS * 2)
    for split in ('train', 'val', 'test'):
        for name in ('listops', 'listops-200'):
            path = root / name / f'{split}.tsv'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('Source\tTarget\n' + lines)
        for label in ('neg', 'pos'):
            for i in range(3):
                path = root / 'aclImdb' / split / label / f'{i}.txt'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f'It was {label}. ' * (2 + i))
    write_class_folders(root / 'cifar10', CIFAR10_CLASSES, 32,
                        dict(train=1, test=1))
    return root


def write_all(root: Path) -> Path:
    """Write every small set under ``root/data`` as the configs expect.

    Args:
        root (Path): Stands for the checkout.

    Returns:
        Path: ``root``.
    """
    from fma_vision.datasets.classification import CIFAR10_CLASSES
    data = root / 'data'
    write_paired(data / 'camvid', 11)
    write_paired(data / 'dubai_aerial', 6)
    write_labelmefacade(data / 'labelmefacade')
    write_class_folders(data / 'cifar10', CIFAR10_CLASSES, 32,
                        dict(train=1, test=1))
    write_tiny_imagenet(data / 'tiny_imagenet100')
    write_fashion_mnist(data / 'fashion_mnist')
    write_texts(data)
    return root


def shrink(node: Any, root: Path) -> None:
    """Make a config small enough to run on a CPU in seconds.

    Two iterations of two samples, no worker processes, 64-pixel pictures,
    32-pixel crops for segmentation and 96-token windows of text; the model
    stays whole.

    Args:
        node: The config or a part of it, changed in place.
        root (Path): Where :func:`write_all` wrote.
    """
    if isinstance(node, dict):
        kind = node.get('type')
        if 'data_root' in node and kind:
            node['data_root'] = str(root / node['data_root'])
            if node.get('expected_length') is not None:
                node['expected_length'] = None
            if kind.endswith('TextDataset'):
                node['length'], node['samples'] = 96, 4
                # Several validation windows of a short text.
                for part in ('valid_fraction', 'test_fraction'):
                    node[part] = 0.2
            elif kind.split('.')[-1] in SAMPLED:
                node['samples'] = 4
            elif 'indices' not in node and kind != 'ConcatDataset':
                node['indices'] = 4
        if kind == 'RandomResize' or (kind == 'Resize' and 'scale' in node):
            node['scale'] = (64, 64)
        if kind == 'RandomCrop' and 'cat_max_ratio' in node:
            node['crop_size'] = (32, 32)
        if kind == 'SegDataPreProcessor':
            node['size'] = (32, 32)
        if 'batch_size' in node:
            node['batch_size'] = 2
            if 'dataset' in node:  # samplers know the batch as well
                node['num_workers'] = 0
                node['persistent_workers'] = False
        for value in node.values():
            shrink(value, root)
    elif isinstance(node, (list, tuple)):
        for value in node:
            shrink(value, root)


def small_config(config: Path,
                 root: Path,
                 target: Path,
                 bases: Sequence[Path] = ()) -> Path:
    """Write a shrunken copy of a config.

    Args:
        config (Path): The config.
        root (Path): Where :func:`write_all` wrote.
        target (Path): File to write.
        bases (sequence[Path]): Parts to merge into the config first.

    Returns:
        Path: ``target``.
    """
    from fma_vision.engine import load_config
    cfg = load_config(str(config), bases=[str(base) for base in bases])
    shrink(cfg._cfg_dict, root)
    loop = cfg.train_cfg
    if 'max_iters' in loop:
        loop.max_iters, loop.val_interval = 2, 2
        cfg.default_hooks.checkpoint.interval = 2
    else:
        # Four images in batches of two are one epoch.
        loop.max_epochs, loop.val_interval = 1, 1
    cfg.default_hooks.logger.interval = 1
    cfg.load_from = None  # the weights of another run are not here
    cfg.dump(str(target))
    return target
