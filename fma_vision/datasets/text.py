"""Windows of a text for language models."""

from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple, Union

import numpy as np
import torch
from torch.utils.data import Dataset

from fma_vision.datasets.vocabulary import (CharacterVocabulary, Vocabulary,
                                            build_vocabulary)
from fma_vision.registry import DATASETS

from .mapped_text import MappedText, find_files
from .token_streams import open_stream, symbols_of

SPLITS = ('train', 'valid', 'test')
MODES = ('random', 'sequential')
# What cross-entropy leaves out unless told otherwise.
IGNORE_INDEX = -100


@DATASETS.register_module()
class TextDataset(Dataset):
    """Windows of a UTF-8 file or of a folder of such files.

    The files of a folder are joined in the order of their paths, with
    nothing between them, and read through a memory map: a text may be
    larger than the memory, except with a tokenizer, whose tokens are held.

    The splits are contiguous: training first, then validation, then test.
    They are cut at the same byte for every vocabulary, so that bits per
    character compare.

    A sample is a dict of

    - ``tokens``: int64 ``[length]``;
    - ``targets``: int64 ``[length]``, the token after each, or -100 where
      it is not to be counted;
    - ``characters``: int, the characters (bytes, for ``'bytes'``) that the
      counted targets stand for.

    Args:
        data_root (str): A folder, or where ``path`` starts from.
            Defaults to ''.
        path (str): File or folder below ``data_root``. Defaults to '': all
            of ``data_root``.
        length (int): Tokens in a window. Defaults to 1024.
        split (str, optional): 'train', 'valid' or 'test'; None takes the
            whole text. Defaults to 'train'.
        valid_fraction (float): Part of the bytes that validates.
            Defaults to 0.1.
        test_fraction (float): Part of the bytes after that, to test.
            Defaults to 0.
        mode (str): 'random': window i starts anywhere, as ``seed`` and i
            say. 'sequential': the windows tile the split, and every token
            but the first is counted once; the last window reaches back to
            be full. Defaults to 'random'.
        vocabulary: 'bytes'; 'characters' (those of the whole text, all
            splits); or what :func:`build_vocabulary` takes: a dict, or a
            JSON file of this package or of the ``tokenizers`` package.
            Defaults to 'bytes'.
        vocab_size (int, optional): Size the vocabulary must have; None
            accepts any. Defaults to None.
        samples (int, optional): Number of windows. None: as many as tile
            the split. In sequential mode at most that many, spread evenly.
            Defaults to None.
        stride (int, optional): Sequential mode only: tokens from a window
            to the next. The rest of a window is context that an earlier
            window has counted. None: ``length``. Defaults to None.
        seed (int): Of the random windows. Defaults to 0.
        pattern (str): Glob for the files of a folder.
            Defaults to '**/*.txt'.

    Attributes:
        vocabulary (Vocabulary): The vocabulary.

    Raises:
        FileNotFoundError: The text or the vocabulary's file is missing.
        ImportError: A tokenizer is given and ``tokenizers`` not installed.
        TypeError: ``length``, ``samples``, ``stride`` or ``seed`` is no int;
            ``vocabulary`` is nothing that makes one.
        ValueError: The text is empty, shorter than a window, not UTF-8
            (``'bytes'`` takes any file), or has characters the vocabulary
            has not; the vocabulary has another size; an argument is out of
            its range.
    """

    def __init__(self,
                 data_root: str = '',
                 path: str = '',
                 length: int = 1024,
                 split: Optional[str] = 'train',
                 valid_fraction: float = 0.1,
                 test_fraction: float = 0.,
                 mode: str = 'random',
                 vocabulary: Union[str, dict, Vocabulary] = 'bytes',
                 vocab_size: Optional[int] = None,
                 samples: Optional[int] = None,
                 stride: Optional[int] = None,
                 seed: int = 0,
                 pattern: str = '**/*.txt') -> None:
        if mode not in MODES:
            raise ValueError(f'TextDataset: mode is {mode!r}; allowed are '
                             f'{MODES}')
        if stride is not None and mode != 'sequential':
            raise ValueError("TextDataset: stride needs mode='sequential'")
        self.mode = mode
        self.length = _integer('length', length, 1)
        self.stride = _integer('stride', length if stride is None else stride,
                               1, length)
        self.seed = _integer('seed', seed, 0)
        if not data_root and not path:
            raise ValueError('TextDataset: give data_root, path or both')
        self.source = Path(data_root).expanduser() / Path(path).expanduser()
        try:
            text = MappedText(find_files(self.source, pattern))
            start, stop = _split_range(text, split, valid_fraction,
                                       test_fraction)
            if vocabulary == 'characters':
                # Of all splits, so that they share the vocabulary.
                self.vocabulary = CharacterVocabulary(symbols_of(text))
            else:
                self.vocabulary = build_vocabulary(vocabulary)
            self._stream = open_stream(text, start, stop, self.vocabulary)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'TextDataset: {error}') from error
        except ValueError as error:
            raise ValueError(f'TextDataset {self.source}: {error}') from error
        if vocab_size is not None and vocab_size != self.vocab_size:
            raise ValueError(
                f'TextDataset {self.source}: the vocabulary has '
                f'{self.vocab_size} entries, vocab_size is {vocab_size}')
        # The last token has no next one to predict.
        self._last_start = len(self._stream) - 1 - length
        if self._last_start < 0:
            raise ValueError(
                f'TextDataset {self.source}: split {split!r} has '
                f'{len(self._stream)} tokens, too few for a window of '
                f'length={length} and the token after it')
        self._windows = 1 + -(-self._last_start // self.stride)
        self._samples = self._windows
        if samples is not None:
            self._samples = _integer('samples', samples, 1)
            if mode == 'sequential':
                self._samples = min(self._samples, self._windows)

    @property
    def vocab_size(self) -> int:
        """int: Token ids are 0 to ``vocab_size - 1``."""
        return self.vocabulary.vocab_size

    @property
    def metainfo(self) -> Dict[str, Any]:
        """dict: The vocabulary, which checkpoints keep as ``dataset_meta``."""
        return dict(
            vocab_size=self.vocab_size, vocabulary=self.vocabulary.state())

    def encode(self, text: str) -> torch.Tensor:
        """As :meth:`Vocabulary.encode`."""
        return self.vocabulary.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """As :meth:`Vocabulary.decode`."""
        return self.vocabulary.decode(ids)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if not 0 <= index < self._samples:
            raise IndexError(f'TextDataset: sample {index} of '
                             f'{self._samples}')
        start, known = self._window(index)
        tokens = self._stream.tokens(start, start + self.length + 1)
        tokens = torch.from_numpy(tokens)
        targets = tokens[1:].clone()
        targets[:known] = IGNORE_INDEX
        return dict(
            tokens=tokens[:-1].clone(),
            targets=targets,
            characters=self._stream.characters(start + 1 + known,
                                               start + 1 + self.length))

    def _window(self, index: int) -> Tuple[int, int]:
        """First token of a window, and how many targets are not counted."""
        if self.mode == 'random':
            # Sample and seed alone decide, whatever process asks.
            state = np.random.SeedSequence([self.seed, index])
            draw = int(state.generate_state(1, np.uint64)[0])
            return draw % (self._last_start + 1), 0
        window = index * self._windows // self._samples
        start = min(window * self.stride, self._last_start)
        if window == 0:
            return start, 0
        # The window before ended here.
        return start, (window - 1) * self.stride + self.length - start


def _integer(name: str,
             value: int,
             least: int,
             most: Optional[int] = None) -> int:
    """An argument that must be an int within a range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'TextDataset: {name} must be an int, '
                        f'{value!r} given')
    if value < least or most is not None and value > most:
        allowed = f'at least {least}' if most is None else \
            f'{least} to {most}'
        raise ValueError(f'TextDataset: {name} is {value}; allowed is '
                         f'{allowed}')
    return value


def _split_range(text: MappedText, split: Optional[str], valid_fraction: float,
                 test_fraction: float) -> Tuple[int, int]:
    """First byte of a split and one past its last.

    Args:
        text (MappedText): The text.
        split (str, optional): Name of the split; None is all.
        valid_fraction (float): Part of the bytes that validates.
        test_fraction (float): Part of the bytes that tests.

    Returns:
        tuple[int, int]: Both at the start of a character.

    Raises:
        ValueError: An unknown split, or fractions that leave nothing.
    """
    if split is None:
        return 0, len(text)
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; allowed are {SPLITS} and None')
    if min(valid_fraction, test_fraction) < 0 or \
            valid_fraction + test_fraction >= 1:
        raise ValueError(f'valid_fraction is {valid_fraction} and '
                         f'test_fraction {test_fraction}; both must be at '
                         'least 0, and their sum below 1')
    size = len(text)
    test = size - round(size * test_fraction)
    valid = test - round(size * valid_fraction)
    edges = [0] + [text.character_start(e) for e in (valid, test)] + [size]
    index = SPLITS.index(split)
    if edges[index] == edges[index + 1]:
        raise ValueError(f'split {split!r} is empty with valid_fraction='
                         f'{valid_fraction}, test_fraction={test_fraction}')
    return edges[index], edges[index + 1]
