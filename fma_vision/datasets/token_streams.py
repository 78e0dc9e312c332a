"""A range of a text as a row of tokens, for each kind of vocabulary.

Every stream has a length in tokens, ``tokens(start, stop)`` (int64 array)
and ``characters(start, stop)``: how many characters (bytes, for a
vocabulary of bytes) those tokens stand for.
"""

from typing import Iterator, Set

import numpy as np

from fma_vision.datasets.vocabulary import (ByteVocabulary,
                                            CharacterVocabulary,
                                            TokenizerVocabulary, Vocabulary)

from .mapped_text import MappedText

# Characters between two entries of the index into a text.
INDEX_STEP = 1024


class TokenStream:
    """Tokens of the bytes ``[start, stop)`` of a text, one a byte.

    Args:
        text (MappedText): The text.
        start (int): First byte.
        stop (int): One past the last.
    """

    def __init__(self, text: MappedText, start: int, stop: int) -> None:
        self.text, self.start, self.stop = text, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop - 1``, int64."""
        data = self.text.read(self.start + start, self.start + stop)
        return data.astype(np.int64)

    def characters(self, start: int, stop: int) -> int:
        """Characters, or bytes, that these tokens stand for."""
        return stop - start


class CharacterStream(TokenStream):
    """One token a character, decoded on demand.

    Of the text only every 1024th character's place is held in memory.

    Args:
        text (MappedText): The text.
        start (int): First byte.
        stop (int): One past the last.
        vocabulary (CharacterVocabulary): Must have every character.

    Raises:
        ValueError: A character is missing, or the bytes are not UTF-8.
    """

    def __init__(self, text: MappedText, start: int, stop: int,
                 vocabulary: CharacterVocabulary) -> None:
        super().__init__(text, start, stop)
        self.vocabulary = vocabulary
        self._length, places = 0, []
        symbols: Set[str] = set()
        for place, block in text.blocks(start, stop):
            symbols.update(block)
            data = np.frombuffer(block.encode(), np.uint8)
            starts = np.flatnonzero(data & 0xC0 != 0x80)
            places.append(starts[-self._length % INDEX_STEP::INDEX_STEP] +
                          place)
            self._length += len(starts)
        vocabulary.check(symbols)
        self._places = np.concatenate(places + [np.array([stop])])

    def __len__(self) -> int:
        return self._length

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """As :meth:`TokenStream.tokens`."""
        first, skip = divmod(start, INDEX_STEP)
        last = -(-stop // INDEX_STEP)
        # The index ends with the end of the text.
        place = self._places[min(last, len(self._places) - 1)]
        data = self.text.read(self._places[first], place).tobytes()
        text = data.decode()[skip:skip + stop - start]
        return self.vocabulary.ids(text)


class TokenizerStream(TokenStream):
    """Tokens of a tokenizer, made once and held in memory.

    The text is given to the tokenizer in pieces of about a million bytes,
    cut after a line; no token spans two pieces.

    Args:
        text (MappedText): The text.
        start (int): First byte.
        stop (int): One past the last.
        vocabulary (TokenizerVocabulary): The tokenizer.

    Raises:
        ValueError: The bytes are not UTF-8.
    """

    def __init__(self, text: MappedText, start: int, stop: int,
                 vocabulary: TokenizerVocabulary) -> None:
        super().__init__(text, start, stop)
        ids, ends, done = [], [], 0
        for piece in self._pieces():
            encoding = vocabulary.tokenizer.encode(
                piece, add_special_tokens=False)
            if not encoding.ids:
                done += len(piece)
                continue
            # A token stands for all from its forerunner's end to its own:
            # spaces that a tokenizer drops are part of the text.
            end = np.array([stop for _, stop in encoding.offsets], np.int64)
            end = np.maximum.accumulate(end)
            end[-1] = len(piece)
            ids.append(np.array(encoding.ids, np.int32))
            ends.append(end + done)
            done += len(piece)
        self._ids = np.concatenate(ids + [np.empty(0, np.int32)])
        self._ends = np.concatenate([np.zeros(1, np.int64)] + ends)
        self._ends[-1] = done

    def _pieces(self) -> Iterator[str]:
        rest = ''
        for _, block in self.text.blocks(self.start, self.stop):
            rest += block
            cut = rest.rfind('\n') + 1 or len(rest)
            yield rest[:cut]
            rest = rest[cut:]
        if rest:
            yield rest

    def __len__(self) -> int:
        return len(self._ids)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """As :meth:`TokenStream.tokens`."""
        return self._ids[start:stop].astype(np.int64)

    def characters(self, start: int, stop: int) -> int:
        """As :meth:`TokenStream.characters`."""
        return int(self._ends[stop] - self._ends[start])


def symbols_of(text: MappedText) -> str:
    """The distinct characters of a text in order of code points.

    Args:
        text (MappedText): The text.

    Returns:
        str: Each character once.

    Raises:
        ValueError: The bytes are not UTF-8.
    """
    symbols: Set[str] = set()
    for _, block in text.blocks(0, len(text)):
        symbols.update(block)
    return ''.join(sorted(symbols))


def open_stream(text: MappedText, start: int, stop: int,
                vocabulary: Vocabulary) -> TokenStream:
    """The stream for a vocabulary.

    Args:
        text (MappedText): The text.
        start (int): First byte.
        stop (int): One past the last.
        vocabulary (Vocabulary): Any of the three kinds.

    Returns:
        TokenStream: The tokens of the range.

    Raises:
        TypeError: No stream for this kind.
        ValueError: The vocabulary does not fit the text.
    """
    if isinstance(vocabulary, ByteVocabulary):
        return TokenStream(text, start, stop)
    if isinstance(vocabulary, CharacterVocabulary):
        return CharacterStream(text, start, stop, vocabulary)
    if isinstance(vocabulary, TokenizerVocabulary):
        return TokenizerStream(text, start, stop, vocabulary)
    raise TypeError(f'no token stream for {type(vocabulary).__name__}')
