"""Labelled texts, byte by byte."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from fma_vision.registry import DATASETS

from .sequences import spread


@DATASETS.register_module()
class TextClassificationDataset(Dataset):
    """Text files in one folder per class, as bytes.

    The files of class ``label`` match ``<data_root>/<split>/<label>/*.txt``.
    Every byte is a token, so that any encoding will do. A file is read when
    it is asked for.

    A sample is a dict of

    - ``tokens``: int64 ``[n]``, 0 to 255, 1 <= n <= ``max_length``;
    - ``label``: int, the number of the class.

    Args:
        data_root (str): Holds the folder of every split.
        split (str): Name of the split's folder. Defaults to '', none.
        classes (sequence[str], optional): Names of the folders, in the order
            of the labels. Defaults to None: all folders there are, sorted,
            but hidden ones.
        max_length (int, optional): Longer texts are cut after so many bytes.
            None keeps them whole. Defaults to 4000, as in Long Range Arena.
        pattern (str): Glob for the files of a class. Defaults to '*.txt'.
        samples (int, optional): At most so many, spread evenly over the set.
            Defaults to None, all.

    Attributes:
        metainfo (dict): ``classes`` and ``vocab_size``.
        sizes (ndarray): int64, bytes of each sample.

    Raises:
        FileNotFoundError: A folder is missing, or holds no file.
        ValueError: There are fewer than two classes, a file is empty, or an
            argument is out of range.
    """

    def __init__(self,
                 data_root: str,
                 split: str = '',
                 classes: Optional[Sequence[str]] = None,
                 max_length: Optional[int] = 4000,
                 pattern: str = '*.txt',
                 samples: Optional[int] = None) -> None:
        name = type(self).__name__
        if max_length is not None and max_length < 1:
            raise ValueError(f'{name}: max_length is {max_length}; allowed is '
                             'at least 1, or None')
        self.max_length = max_length
        self.source = Path(data_root).expanduser() / split
        if not self.source.is_dir():
            raise FileNotFoundError(f'{name}: no folder {self.source}')
        if classes is None:
            classes = sorted(p.name for p in self.source.iterdir()
                             if p.is_dir() and not p.name.startswith('.'))
        if len(classes) < 2:
            raise ValueError(f'{name}: {self.source} must hold a folder per '
                             f'class, two at least; found: {list(classes)}')
        self.metainfo = dict(classes=tuple(classes), vocab_size=256)
        files: List[Path] = []
        labels: List[int] = []
        for label, folder in enumerate(classes):
            found = self._files(folder, pattern)
            files += found
            labels += [label] * len(found)
        chosen = spread(len(files), samples, name)
        self._files_of_samples = [files[i] for i in chosen]
        self._labels = np.array(labels)[chosen]
        self.sizes = self._measure()

    def _files(self, folder: str, pattern: str) -> List[Path]:
        """The files of a class, sorted by name."""
        root = self.source / folder
        if not root.is_dir():
            raise FileNotFoundError(f'{type(self).__name__}: no folder {root} '
                                    f'for class {folder!r}')
        found = sorted(p for p in root.glob(pattern) if p.is_file())
        if not found:
            raise FileNotFoundError(
                f'{type(self).__name__}: no file {pattern!r} in {root}')
        return found

    def _measure(self) -> np.ndarray:
        """Bytes of each sample."""
        sizes = np.array([p.stat().st_size for p in self._files_of_samples])
        if not sizes.all():
            raise ValueError(f'{type(self).__name__}: '
                             f'{self._files_of_samples[sizes.argmin()]} is '
                             'empty')
        return sizes if self.max_length is None else np.minimum(
            sizes, self.max_length)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'{type(self).__name__}: sample {index} of '
                             f'{len(self)}')
        data = np.fromfile(
            self._files_of_samples[index],
            np.uint8,
            count=-1 if self.max_length is None else self.max_length)
        return dict(
            tokens=torch.from_numpy(data.astype(np.int64)),
            label=int(self._labels[index]))
