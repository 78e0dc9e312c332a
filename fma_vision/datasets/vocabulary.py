"""Vocabularies of text: bytes, characters, or a Hugging Face tokenizer.

A vocabulary maps text to token ids and back. Its :meth:`~Vocabulary.state`
is a dict of plain values, so that a config, a JSON file or a checkpoint can
carry it, and :func:`build_vocabulary` makes it again.
"""

import codecs
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Union

import numpy as np
import torch

from fma_vision.engine.files import write_json

__all__ = [
    'ByteVocabulary', 'CharacterVocabulary', 'TokenizerVocabulary',
    'Vocabulary', 'build_vocabulary'
]


class Vocabulary:
    """What all vocabularies share.

    Attributes:
        vocab_size (int): Ids are 0 to ``vocab_size - 1``.
    """

    vocab_size: int

    def encode(self, text: str) -> torch.Tensor:
        """Token ids of a text.

        Args:
            text (str): Any text.

        Returns:
            Tensor: int64 ``[n]``.

        Raises:
            ValueError: The text cannot be written with this vocabulary.
        """
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids.

        Args:
            ids (iterable[int]): Token ids, or an integer tensor ``[n]``.

        Returns:
            str: The text.

        Raises:
            ValueError: An id is not below ``vocab_size``.
        """
        return ''.join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids as they come, never half a character.

        Args:
            ids (iterable[int]): Token ids; may be a generator.

        Yields:
            str: What can be shown after each id, often an empty string
            where a character has several tokens; the pieces joined are
            the text.

        Raises:
            ValueError: An id is not below ``vocab_size``.
        """
        raise NotImplementedError

    def state(self) -> Dict[str, Any]:
        """All there is to know, as plain values.

        Returns:
            dict: :func:`build_vocabulary` takes it.
        """
        raise NotImplementedError

    def save(self, path: Union[str, Path]) -> None:
        """Write :meth:`state` as JSON.

        Args:
            path (str or Path): The file.
        """
        write_json(path, self.state())

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Vocabulary)
                and self.state() == other.state())

    __hash__ = None  # a state is a dict

    def __repr__(self) -> str:
        return f'{type(self).__name__}(vocab_size={self.vocab_size})'

    def _check(self, token: int) -> int:
        token = int(token)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f'token id {token} given, allowed are 0 to '
                             f'{self.vocab_size - 1}')
        return token


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8: fits every text, and every file."""

    vocab_size = 256

    def encode(self, text: str) -> torch.Tensor:
        """As :meth:`Vocabulary.encode`."""
        return torch.tensor(list(text.encode()), dtype=torch.int64)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """As :meth:`Vocabulary.decode_stream`; U+FFFD for broken UTF-8."""
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        for token in ids:
            yield decoder.decode(bytes([self._check(token)]))
        rest = decoder.decode(b'', True)
        if rest:
            yield rest

    def state(self) -> Dict[str, Any]:
        """As :meth:`Vocabulary.state`."""
        return dict(type='bytes')


class CharacterVocabulary(Vocabulary):
    """One token for each of a fixed set of characters.

    Args:
        symbols (str): The characters; ids are their places in order of
            code points, whatever order they are given in.

    Raises:
        ValueError: ``symbols`` is empty or names a character twice.
    """

    def __init__(self, symbols: str) -> None:
        if not symbols or len(set(symbols)) != len(symbols):
            raise ValueError('symbols must be distinct characters, at least '
                             f'one; {len(symbols)} given, '
                             f'{len(set(symbols))} of them distinct')
        self.symbols = ''.join(sorted(symbols))
        self.vocab_size = len(symbols)
        self._codes = _code_points(self.symbols)

    def ids(self, text: str) -> np.ndarray:
        """Token ids of a text as an array.

        Args:
            text (str): Any text.

        Returns:
            ndarray: int64 ``[n]``.

        Raises:
            ValueError: A character is not in the vocabulary.
        """
        codes = _code_points(text)
        ids = np.searchsorted(self._codes, codes)
        # Codes above the last symbol's are placed past the end.
        known = self._codes[np.minimum(ids, self.vocab_size - 1)] == codes
        if not known.all():
            self.check(text)
        return ids

    def encode(self, text: str) -> torch.Tensor:
        """As :meth:`Vocabulary.encode`."""
        return torch.from_numpy(self.ids(text))

    def check(self, symbols: Iterable[str]) -> None:
        """Refuse characters that are not in the vocabulary.

        Args:
            symbols (iterable[str]): Characters.

        Raises:
            ValueError: Names those that are missing.
        """
        missing = sorted(set(symbols) - set(self.symbols))
        if missing:
            raise ValueError(
                f'{len(missing)} characters are not among the '
                f'{self.vocab_size} of the vocabulary: {missing[:10]}')

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """As :meth:`Vocabulary.decode_stream`."""
        for token in ids:
            yield self.symbols[self._check(token)]

    def state(self) -> Dict[str, Any]:
        """As :meth:`Vocabulary.state`."""
        return dict(type='characters', symbols=self.symbols)


class TokenizerVocabulary(Vocabulary):
    """The tokens of a Hugging Face ``tokenizers`` file.

    Special tokens are not added to a text, and are shown when decoding.

    Args:
        definition (str): Content of the file, JSON.

    Raises:
        ImportError: The package ``tokenizers`` is not installed.
        ValueError: The package does not accept the content.
    """

    def __init__(self, definition: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError('a vocabulary of tokens needs the package '
                              'tokenizers: pip install tokenizers') from error
        try:
            self.tokenizer = Tokenizer.from_str(definition)
        except Exception as error:  # the package raises bare Exceptions
            raise ValueError(
                f'no tokenizer of the tokenizers package: {error}') from error
        # A text to train on is neither cut nor filled up.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.definition = definition
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        # Ids may have holes: the count can be below the largest id.
        self.vocab_size = max(ids, default=-1) + 1

    def encode(self, text: str) -> torch.Tensor:
        """As :meth:`Vocabulary.encode`."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor(encoding.ids, dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """As :meth:`Vocabulary.decode`."""
        return self.tokenizer.decode([self._check(i) for i in ids],
                                     skip_special_tokens=False)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """As :meth:`Vocabulary.decode_stream`.

        The last tokens stay in sight, because a decoder may treat the first
        token of a text in its own way.
        """
        seen: List[int] = []
        shown, waiting = '', 0
        for token in ids:
            seen.append(token)
            text = self.decode(seen)
            # Perhaps half a character, which has four bytes at most.
            if text.endswith('\ufffd') and waiting < 3:
                waiting += 1
                yield ''
                continue
            yield text[len(shown):]
            seen, waiting = seen[-8:], 0
            shown = self.decode(seen)
        yield self.decode(seen)[len(shown):]

    def state(self) -> Dict[str, Any]:
        """As :meth:`Vocabulary.state`."""
        return dict(type='tokenizers', definition=self.definition)


def build_vocabulary(spec: Union[str, Path, dict, Vocabulary]) -> Vocabulary:
    """Make a vocabulary.

    Args:
        spec: 'bytes'; a dict as :meth:`Vocabulary.state` gives; the path of
            a JSON file, either one that :meth:`Vocabulary.save` wrote or
            one of the ``tokenizers`` package; or a vocabulary, handed back.

    Returns:
        Vocabulary: The vocabulary.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package ``tokenizers`` is needed.
        TypeError: ``spec`` is something else.
        ValueError: The file or the dict describes no vocabulary.
    """
    if isinstance(spec, Vocabulary):
        return spec
    if isinstance(spec, dict):
        return _from_state(spec, f'vocabulary={dict(spec)!r:.100}')
    if spec == 'bytes':
        return ByteVocabulary()
    if not isinstance(spec, (str, Path)):
        raise TypeError("vocabulary must be 'bytes', a file, a dict or a "
                        f'Vocabulary, got {spec!r}')
    path = Path(spec).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f'vocabulary {str(spec)!r} is neither a file nor one of '
            "'bytes' and, for a dataset, 'characters'")
    try:
        text = path.read_text(encoding='utf-8')
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'vocabulary {path} is not JSON: {error}') from error
    if isinstance(content, dict) and 'model' in content:
        content = dict(type='tokenizers', definition=text)
    return _from_state(content, f'vocabulary {path}')


def _from_state(state: Any, name: str) -> Vocabulary:
    kinds = dict(
        bytes=ByteVocabulary,
        characters=CharacterVocabulary,
        tokenizers=TokenizerVocabulary)
    arguments = dict(state) if isinstance(state, dict) else {}
    kind = arguments.pop('type', None)
    if kind not in kinds:
        raise ValueError(f'{name} has type {kind!r}; allowed are '
                         f'{sorted(kinds)}')
    try:
        return kinds[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name}: {error}') from error


def _code_points(text: str) -> np.ndarray:
    """int64 ``[n]``: the code point of each character."""
    # Lone surrogates pass, to be named as unknown like any other symbol.
    data = text.encode('utf-32-le', 'surrogatepass')
    return np.frombuffer(data, '<u4').astype(np.int64)
