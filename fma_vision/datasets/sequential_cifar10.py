"""CIFAR-10 as sequences of pixels."""

from typing import Any, Dict

import numpy as np
import torch
from PIL import Image

from fma_vision.registry import DATASETS

from .classification import CIFAR10FolderDataset

SIDE = 32


@DATASETS.register_module()
class SequentialCIFAR10(CIFAR10FolderDataset):
    """Grey pixels row by row: 1,024 tokens of 256 levels (arXiv 2011.04006).

    Grey is Pillow's mode L (the weights of ITU-R 601). Scores compare with
    published ones only where the files keep the pixels without loss: a set
    that was re-encoded as JPEG is another one.

    A sample is a dict of

    - ``tokens``: int64 ``[1024]``, 0 to 255;
    - ``label``: int, 0 to 9.

    Args:
        data_root (str): Holds the folders ``train`` and ``test``.
        split (str): 'train' or 'test'.
        **kwargs: Arguments of :class:`CIFAR10FolderDataset`.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: Folders and classes differ, or the length; an image, when
            asked for, has another size.
    """

    METAINFO = dict(CIFAR10FolderDataset.METAINFO, vocab_size=256)

    def prepare_data(self, idx: int) -> Dict[str, Any]:
        """One sample; there is no pipeline to run."""
        info = self.get_data_info(idx)
        with Image.open(info['img_path']) as image:
            levels = np.asarray(image.convert('L'), np.int64)
        if levels.shape != (SIDE, SIDE):
            raise ValueError(f'SequentialCIFAR10: {info["img_path"]} is '
                             f'{levels.shape}, not {SIDE} x {SIDE}')
        return dict(
            tokens=torch.from_numpy(levels.reshape(-1)),
            label=info['gt_label'])
