"""Small classification sets kept as one folder of images per class."""
from pathlib import Path
from typing import Any, List, Optional

from mmpretrain.datasets import CustomDataset

from fma_vision.registry import DATASETS

from .cached_images import cache_images, read_cached

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog',
                   'frog', 'horse', 'ship', 'truck')


def check_length(name: str, found: int, expected: Optional[int]) -> None:
    """Refuse a set of another length than the config counts on.

    Args:
        name (str): For the message.
        found (int): Number of samples.
        expected (int, optional): None checks nothing.

    Raises:
        ValueError: The numbers differ.
    """
    if expected is not None and found != expected:
        raise ValueError(f'{name}: {found} samples found, expected_length is '
                         f'{expected}')


class FolderDataset(CustomDataset):
    """Images in ``<data_root>/<split>/<folder>/``, one folder per class.

    The host numbers the folders it happens to find; here the class list
    decides, so that a missing folder is an error and never a shift of all
    labels.

    Args:
        data_root (str): Holds the folder of every split.
        split (str): Name of the split's folder.
        expected_length (int, optional): Number of images the split must
            have; None accepts any.
        cache_images (bool): Keep the decoded images in one file beside the
            data, which the pipeline's ``LoadImageFromFile`` then reads.
            Defaults to False.
        **kwargs: Arguments of :class:`mmpretrain.datasets.CustomDataset`.

    Raises:
        FileNotFoundError: The split's folder is missing.
        ValueError: Folders and classes differ, or the length.
    """

    converter = ''

    def __init__(self,
                 data_root: str,
                 split: str,
                 expected_length: Optional[int] = None,
                 cache_images: bool = False,
                 **kwargs: Any) -> None:
        self.expected_length = expected_length
        self.cache_images = cache_images
        if cache_images:
            kwargs['pipeline'] = read_cached(kwargs.get('pipeline', ()))
        super().__init__(data_root=data_root, data_prefix=split, **kwargs)

    def folders(self) -> List[str]:
        """Folder names in the order of the labels."""
        return list(self.CLASSES)

    def load_data_list(self) -> List[dict]:
        """List the samples.

        Returns:
            list[dict]: ``img_path`` and ``gt_label`` of each, and
            ``cached_image`` where images are cached.
        """
        name, root = type(self).__name__, Path(self.img_prefix)
        if not root.is_dir():
            raise FileNotFoundError(
                f'{name}: no folder {root}. Make the layout with python '
                f'tools/dataset_converters/{self.converter}')
        wanted = self.folders()
        there = sorted(p.name for p in root.iterdir() if p.is_dir())
        if set(there) != set(wanted):
            raise ValueError(
                f'{name}: {root} must hold exactly one folder per class; '
                f'missing: {sorted(set(wanted) - set(there))[:5]}, '
                f'not a class: {sorted(set(there) - set(wanted))[:5]}')
        samples = []
        for label, folder in enumerate(wanted):
            files = sorted(
                p for p in (root / folder).iterdir()
                if self.is_valid_file(p.name))
            if not files:
                raise ValueError(f'{name}: no image in {root / folder}')
            samples += [
                dict(img_path=str(path), gt_label=label) for path in files
            ]
        check_length(f'{name} {root}', len(samples), self.expected_length)
        if self.cache_images:
            cache_images(samples, self.data_root)
        return samples


@DATASETS.register_module()
class CIFAR10FolderDataset(FolderDataset):
    """CIFAR-10 as image files: 50,000 + 10,000 of 32 x 32, 10 classes."""

    METAINFO = dict(classes=CIFAR10_CLASSES)
    converter = 'cifar10.py'


@DATASETS.register_module()
class TinyImageNet100Dataset(FolderDataset):
    """100 classes of Tiny ImageNet: 50,000 + 5,000 images of 64 x 64.

    ``<data_root>/classes.txt`` has a line ``<wnid>\\t<names>`` per class and
    fixes the order of the labels.

    Args:
        data_root (str): Holds ``classes.txt``, ``train`` and ``val``.
        **kwargs: Arguments of :class:`FolderDataset`.

    Raises:
        FileNotFoundError: ``classes.txt`` is missing.
    """

    converter = 'tiny_imagenet100.py'

    def __init__(self, data_root: str, **kwargs: Any) -> None:
        path = Path(data_root) / 'classes.txt'
        if not path.is_file():
            raise FileNotFoundError(
                f'TinyImageNet100Dataset: no {path}. Make the layout with '
                f'python tools/dataset_converters/{self.converter}')
        rows = [
            line.split('\t')
            for line in path.read_text(encoding='utf-8').splitlines()
            if line.strip()
        ]
        self.wnids = [row[0] for row in rows]
        # The first of the synonyms is name enough.
        names = tuple(row[-1].split(',')[0].strip() for row in rows)
        super().__init__(data_root=data_root, classes=names, **kwargs)

    def folders(self) -> List[str]:
        """WordNet ids in the order of ``classes.txt``."""
        return self.wnids
