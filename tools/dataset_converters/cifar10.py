"""CIFAR-10: 50,000 training and 10,000 test images of 32 x 32, 10 classes.

Official layout: ``cifar-10-batches-py`` with ``data_batch_1`` to ``_5`` and
``test_batch``; images become PNG files, without loss.
"""
import pickle
from pathlib import Path
from typing import Any, Dict

import numpy as np
from class_folders import copy_class_folders
from common import (ConversionError, base_parser, check_count, find_layout,
                    opened, report, run, staged)
from PIL import Image

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog',
           'horse', 'ship', 'truck')
PER_CLASS = dict(train=5000, test=1000)
SIZE = 32
BATCHES = dict(
    train=tuple(f'data_batch_{i}' for i in range(1, 6)), test=('test_batch', ))
LAYOUTS = {
    'packed': ('train/airplane', 'test/airplane'),
    'official': ('data_batch_1', 'test_batch')
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays of numbers and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ('_reconstruct', 'ndarray', 'dtype') and \
                module.split('.')[0] == 'numpy':
            return super().find_class(module, name)
        if (module, name) == ('_codecs', 'encode'):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed')


def read_batch(path: Path) -> Dict[bytes, Any]:
    """Read an official batch.

    Args:
        path (Path): The pickle.

    Returns:
        dict: b'data' (uint8 ``[N, 3072]``), b'labels', b'filenames'.

    Raises:
        ConversionError: It is no such batch.
    """
    try:
        with open(path, 'rb') as file:
            batch = _ArraysOnly(file, encoding='bytes').load()
        data, labels = batch[b'data'], batch[b'labels']
        fine = data.dtype == np.uint8 and data.ndim == 2 and \
            data.shape == (len(labels), 3 * SIZE * SIZE) and \
            all(0 <= label < len(CLASSES) for label in labels)
    except OSError:
        raise
    except Exception as error:
        raise ConversionError(f'{path} is no CIFAR-10 batch: {error}')
    if not fine:
        raise ConversionError(f'{path} is no CIFAR-10 batch: wrong shapes or '
                              'labels')
    return batch


def convert(sources, out: str, force: bool, partial: bool) -> None:
    """Convert; arguments as on the command line."""
    with opened(sources) as folder:
        layout, root = find_layout(folder, LAYOUTS)
        with staged(out, force) as staging:
            if layout == 'packed':
                done = copy_class_folders(root, staging, CLASSES, PER_CLASS,
                                          SIZE, partial)
            else:
                done = {
                    split: _write_batches(root, staging, split)
                    for split in BATCHES
                }
                for split, number in done.items():
                    check_count(f'{root} {split}', number,
                                PER_CLASS[split] * len(CLASSES), partial)
    report(out, done)


def _write_batches(root: Path, staging: Path, split: str) -> int:
    for name in CLASSES:
        (staging / split / name).mkdir(parents=True)
    number = 0
    for batch_name in BATCHES[split]:
        batch = read_batch(root / batch_name)
        for pixels, label in zip(batch[b'data'], batch[b'labels']):
            # Planes of red, green and blue -> [32, 32, 3].
            image = pixels.reshape(3, SIZE, SIZE).transpose(1, 2, 0)
            Image.fromarray(image).save(staging / split / CLASSES[label] /
                                        f'{number:05d}.png')
            number += 1
    return number


def main() -> None:
    args = base_parser(__doc__.splitlines()[0], 'data/cifar10').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
