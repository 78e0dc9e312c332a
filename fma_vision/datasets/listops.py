"""ListOps: nested operators over digits, to be worked out."""

from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from fma_vision.registry import DATASETS

from .mapped_text import BLOCK, MappedText, find_files
from .sequences import spread

HEADER = b'Source\tTarget'
DIGITS = tuple('0123456789')
# In the order of their ids.
TOKENS = DIGITS + ('[MIN', '[MAX', '[MED', '[SM', ']')
# The benchmark's own files wrap each argument; its reader drops these.
DROPPED = (b'(', b')')


@DATASETS.register_module()
class ListOpsDataset(Dataset):
    """Expressions of ListOps and their values (arXiv 2011.04006).

    A file has a header and a line for each expression: its tokens with
    spaces between them, a tab, and a digit. Files of the benchmark are read
    as well; the round brackets in them are dropped. Lines are read through a
    memory map and split when asked for.

    A sample is a dict of

    - ``tokens``: int64 ``[n]``, ids in the order of ``TOKENS``: digits are
      their own ids, the four operators with their brackets follow, and the
      closing bracket comes last;
    - ``label``: int, 0 to 9.

    Args:
        data_root (str): Folder of the files.
        path (str): File in it.
        samples (int, optional): At most so many, spread evenly over the
            file. Defaults to None, all.

    Attributes:
        sizes (ndarray): int64, bytes of each expression: about in proportion
            to its tokens.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, or no such table; an expression, when asked
            for, holds an unknown token or has no value.
    """

    metainfo: Dict[str, Any] = dict(classes=DIGITS, vocab_size=len(TOKENS))

    def __init__(self,
                 data_root: str,
                 path: str,
                 samples: Optional[int] = None) -> None:
        self.source = Path(data_root).expanduser() / path
        if not self.source.is_file():
            raise FileNotFoundError(
                f'ListOpsDataset: no file {self.source}. Make it with python '
                'tools/dataset_converters/listops.py')
        self._text = MappedText(find_files(self.source, ''))
        ends = self._line_ends()
        starts = np.concatenate([[0], ends[:-1] + 1])
        if self._line(starts[0], ends[0]) != HEADER:
            raise ValueError(f'ListOpsDataset {self.source}: the first line '
                             f'must be {HEADER.decode()!r}')
        if len(ends) < 2:
            raise ValueError(f'ListOpsDataset {self.source}: no expression')
        # Lines count from 0, and the first is the header.
        self._lines = 1 + spread(len(ends) - 1, samples, 'ListOpsDataset')
        self._starts, self._ends = starts[self._lines], ends[self._lines]
        self.sizes = self._ends - self._starts
        self._ids = {t.encode(): i for i, t in enumerate(TOKENS)}

    def _line_ends(self) -> np.ndarray:
        """The place after each line, its end of line not counted."""
        size = len(self._text)
        parts = [
            np.flatnonzero(
                self._text.read(place, min(place + BLOCK, size)) == 10) + place
            for place in range(0, size, BLOCK)
        ]
        if self._text.read(size - 1, size)[0] != 10:
            parts.append(np.array([size]))
        return np.concatenate(parts)

    def _line(self, start: int, end: int) -> bytes:
        return self._text.read(start, end).tobytes().strip()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'ListOpsDataset: sample {index} of {len(self)}')
        line = self._line(self._starts[index], self._ends[index])
        text, _, value = line.rpartition(b'\t')
        try:
            ids = [self._ids[t] for t in text.split() if t not in DROPPED]
            label = DIGITS.index(value.decode())
        except (KeyError, ValueError) as error:
            raise ValueError(
                f'ListOpsDataset {self.source}, line '
                f'{self._lines[index] + 1}: {error} is no token or value of '
                f'ListOps; tokens are {TOKENS}') from error
        if not ids:
            raise ValueError(f'ListOpsDataset {self.source}, line '
                             f'{self._lines[index] + 1}: no expression')
        return dict(tokens=torch.tensor(ids), label=label)
