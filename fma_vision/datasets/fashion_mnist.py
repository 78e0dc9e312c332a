"""Fashion-MNIST from its IDX files."""
from pathlib import Path
from typing import Any, List, Optional

from mmpretrain.datasets import BaseDataset

from fma_vision.registry import DATASETS

from .classification import check_length
from .idx import find_idx, read_idx

FASHION_MNIST_CLASSES = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat',
                         'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')
FILE_PREFIX = dict(train='train', test='t10k')


@DATASETS.register_module()
class FashionMNISTDataset(BaseDataset):
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28, 10 classes.

    The split alone decides which files are read. (The host's
    ``FashionMNIST(split='test')`` reads the training files unless
    ``test_mode`` is also given.) Nothing is downloaded.

    Args:
        data_root (str): Folder of the four IDX files, ``.gz`` or not.
        split (str): 'train' or 'test'.
        expected_length (int, optional): Number of images the split must
            have; None accepts any.
        **kwargs: Arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is broken, or the lengths do not agree.
    """

    METAINFO = dict(classes=FASHION_MNIST_CLASSES)

    def __init__(self,
                 data_root: str,
                 split: str,
                 expected_length: Optional[int] = None,
                 **kwargs: Any) -> None:
        if split not in FILE_PREFIX:
            raise ValueError(f'FashionMNISTDataset: split is {split!r}; '
                             f'allowed are {sorted(FILE_PREFIX)}')
        self.split, self.expected_length = split, expected_length
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Read the split.

        Returns:
            list[dict]: ``img`` (uint8 ``[28, 28]``) and ``gt_label``.
        """
        root, prefix = Path(self.data_root), FILE_PREFIX[self.split]
        images = read_idx(find_idx(root, f'{prefix}-images-idx3-ubyte'))
        labels = read_idx(find_idx(root, f'{prefix}-labels-idx1-ubyte'))
        name = f'FashionMNISTDataset {self.split}'
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(f'{name}: images {images.shape} and labels '
                             f'{labels.shape} do not belong together')
        if labels.size and labels.max() >= len(FASHION_MNIST_CLASSES):
            raise ValueError(f'{name}: label {labels.max()} found, allowed '
                             'are 0 to 9')
        check_length(f'{name} {root}', len(images), self.expected_length)
        return [
            dict(img=image, gt_label=int(label))
            for image, label in zip(images, labels)
        ]
