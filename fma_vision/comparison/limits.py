"""What a size would need, known before it is tried."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import List, NamedTuple, Optional, Union

import torch

GIB = 2**30
# Files in which Linux says what a container may use, and uses.
_CONTAINER = (('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),
              ('/sys/fs/cgroup/memory/memory.limit_in_bytes',
               '/sys/fs/cgroup/memory/memory.usage_in_bytes'))
_OUT_OF_MEMORY = ('out of memory', "can't allocate memory",
                  'not enough memory', 'alloc_failed',
                  'cannot allocate memory')


def _number(path: str) -> Optional[int]:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_on_host() -> Optional[int]:
    """Bytes that the system can still give out, None if it does not say."""
    found = []
    try:
        for line in Path('/proc/meminfo').read_text().splitlines():
            if line.startswith('MemAvailable:'):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    for limit, usage in _CONTAINER:
        most, used = _number(limit), _number(usage)
        if most is not None and used is not None:
            found.append(max(most - used, 0))
    if not found and hasattr(os, 'sysconf'):
        names = os.sysconf_names
        if 'SC_PHYS_PAGES' in names and 'SC_PAGE_SIZE' in names:
            found.append(
                os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return min(found) if found else None


def available_memory(device: Union[str, torch.device]) -> Optional[int]:
    """Bytes that tensors can still take.

    Args:
        device: Where.

    Returns:
        On CUDA what is free or kept by PyTorch's allocator without use; on a
        CPU what the system, or the container, can still give out; None where
        that is unknown.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        index = device.index
        if index is None:
            index = torch.cuda.current_device()
        free, _ = torch.cuda.mem_get_info(index)
        return free + torch.cuda.memory_reserved(
            device) - torch.cuda.memory_allocated(device)
    return _free_on_host() if device.type == 'cpu' else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(
        error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY))


@dataclass(frozen=True)
class Limits:
    """What one call may take.

    Attributes:
        memory: Bytes, beyond what is in use; None is what there is.
        seconds: Of one call.
    """
    memory: Optional[int] = None
    seconds: float = float('inf')

    def bytes_left(self, device: Union[str, torch.device]) -> Optional[int]:
        """The smaller of the limit and what there is, None if neither."""
        known = [self.memory, available_memory(device)]
        return min((x for x in known if x is not None), default=None)


class _Point(NamedTuple):
    tokens: int
    macs: Optional[int]
    seconds: float
    peak_bytes: int


def _extrapolate(points: List[_Point], name: str, tokens: int) -> float:
    """A value at a larger size: a n + b n^2 through the last two sizes.

    A single size is taken to grow with n: what is foretold from the smallest
    ones alone is small itself.
    """
    last = points[-1]
    square, linear = 0., getattr(last, name) / last.tokens
    if len(points) > 1:
        before = points[-2]
        square = (linear - getattr(before, name) / before.tokens) / (
            last.tokens - before.tokens)
        square = max(square, 0.)
        linear -= square * last.tokens
    return linear * tokens + square * tokens**2


class Forecast:
    """Seconds and peak memory of a call, from those at smaller sizes."""

    def __init__(self) -> None:
        self._points: List[_Point] = []

    def add(self, tokens: int, macs: Optional[int], seconds: float,
            peak_bytes: int) -> None:
        """Takes a measurement.

        Args:
            tokens: No fewer than those of the last one.
            macs: Multiply-adds, None if unknown.
            seconds: Of one call.
            peak_bytes: Most bytes of tensors, beyond those before it.
        """
        if self._points and self._points[-1].tokens == tokens:
            self._points.pop()  # another shape
        self._points.append(_Point(tokens, macs, seconds, peak_bytes))

    def correct(self, seconds: float) -> None:
        """Replaces the seconds of the last measurement by better ones."""
        self._points[-1] = self._points[-1]._replace(seconds=seconds)

    def obstacle(self, tokens: int, macs: Optional[int], limits: Limits,
                 device: Union[str, torch.device]) -> Optional[str]:
        """Why a size would not fit.

        Args:
            tokens, macs: Of the size.
            limits: What a call may take.
            device: Where it would run.

        Returns:
            The reason; None if it fits, or if nothing smaller was measured.
        """
        if not self._points:
            return None
        last = self._points[-1]
        left = limits.bytes_left(device)
        need = _extrapolate(self._points, 'peak_bytes', tokens)
        if left is not None and need > left:
            return f'would need {gib(need)} of {gib(left)}'
        if macs is None or not last.macs:
            seconds = _extrapolate(self._points, 'seconds', tokens)
        else:
            # Transforms and norms have no multiply-adds, but grow with n.
            growth = max(macs / last.macs, tokens / last.tokens)
            seconds = last.seconds * growth
        if seconds > limits.seconds:
            return (f'would take {seconds:.3g} s a call, '
                    f'{limits.seconds:g} s allowed')
        return None


def gib(count: float) -> str:
    """Bytes as a short text."""
    unit, name = (GIB, 'GiB') if count >= GIB / 10 else (2**20, 'MiB')
    return f'{count / unit:.3g} {name}'
