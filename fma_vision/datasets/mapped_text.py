"""Files of text, joined and memory-mapped."""

import codecs
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np

BLOCK = 1 << 20


def find_files(path: Path, pattern: str) -> List[Path]:
    """The files of a text.

    Args:
        path (Path): A file or a folder.
        pattern (str): Glob for the files of a folder, ``**`` for any depth.

    Returns:
        list[Path]: The file, or the matching files in the order of their
        paths below the folder, those without a byte left out.

    Raises:
        FileNotFoundError: There is no such path, or no file matches.
        ValueError: There is no text in them.
    """
    if path.is_dir():
        found = [p for p in path.glob(pattern) if p.is_file()]
        if not found:
            raise FileNotFoundError(f'no file {pattern!r} in {path}')
        found.sort(key=lambda p: p.relative_to(path).parts)
    elif path.is_file():
        found = [path]
    else:
        raise FileNotFoundError(f'no file or folder {path}')
    files = [p for p in found if p.stat().st_size]
    if not files:
        raise ValueError(f'{path} is empty: no text in {len(found)} file(s)')
    return files


class MappedText:
    """The bytes of several files as one row, read on demand.

    Pickling keeps the paths only, so that a worker process maps the files
    itself.

    Args:
        files (sequence[Path]): Files with at least a byte each.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [Path(p).absolute() for p in files]
        self._map()

    def _map(self) -> None:
        self._maps = [
            np.asarray(np.memmap(p, np.uint8, 'r')) for p in self.files
        ]
        # Global place of each file's first byte, and of the end.
        self._edges = np.cumsum([0] + [m.size for m in self._maps])

    def __getstate__(self) -> Dict[str, list]:
        return dict(files=self.files)

    def __setstate__(self, state: Dict[str, list]) -> None:
        self.files = state['files']
        self._map()

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes of a range.

        Args:
            start (int): First byte.
            stop (int): One past the last; both within the text.

        Returns:
            ndarray: uint8 ``[stop - start]``; a view where one file holds
            the range.
        """
        first = np.searchsorted(self._edges, start, 'right') - 1
        parts = []
        for data, edge in zip(self._maps[first:], self._edges[first:]):
            if edge >= stop:
                break
            parts.append(data[max(start - edge, 0):stop - edge])
        return parts[0] if len(parts) == 1 else np.concatenate(
            parts or [np.empty(0, np.uint8)])

    def character_start(self, place: int) -> int:
        """The first place from ``place`` on where a character may start.

        Args:
            place (int): A byte, or the end.

        Returns:
            int: At most three bytes further.
        """
        # UTF-8 continues a character with bytes 10xxxxxx, three at most.
        for byte in self.read(place, min(place + 3, len(self))):
            if byte & 0xC0 != 0x80:
                break
            place += 1
        return place

    def blocks(self, start: int, stop: int) -> Iterator[Tuple[int, str]]:
        """Decode a range block by block.

        Args:
            start (int): First byte, where a character starts.
            stop (int): One past the last.

        Yields:
            tuple[int, str]: Place of the block's first byte and its text.
            A character that a block cuts belongs to the next one.

        Raises:
            ValueError: The bytes are not UTF-8; names file and place.
        """
        decoder = codecs.getincrementaldecoder('utf-8')()
        for place in range(start, stop, BLOCK):
            end = min(place + BLOCK, stop)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(
                    self.read(place, end).tobytes(), end == stop)
            except UnicodeDecodeError as error:
                bad = place - held + error.start
                index = np.searchsorted(self._edges, bad, 'right') - 1
                raise ValueError(
                    f'{self.files[index]} is not UTF-8: {error.reason} at '
                    f'byte {bad - self._edges[index]}') from error
            yield place - held, text
