"""What the GPU benchmarks share: cases, inputs, guards, timing, records.

Needs torch only, so that the op can be measured where nothing else is
installed; the helpers of ``fma_vision.utils`` are loaded file by file, since
importing their package needs timm.
"""
import gc
import importlib.util
import json
import math
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[[], Any]


def load_file(path: str) -> ModuleType:
    """Imports a file by its path from the root."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f'file_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_timing = load_file('fma_vision/utils/timing.py')
summarise, peak_memory = _timing.summarise, _timing.peak_memory
write_json = load_file('fma_vision/utils/files.py').write_json
_environment = load_file('fma_vision/utils/environment.py')

DTYPES = dict(
    bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)


class Case(NamedTuple):
    """One size: tokens, cells to try, and a layer's heads x head_dim."""
    shape: Tuple[int, ...]
    cells: Tuple[int, ...]
    heads: int
    head_dim: int
    batch: int
    causal: bool = False
    flex: bool = True

    @property
    def tokens(self) -> int:
        return math.prod(self.shape)

    @property
    def full_flops(self) -> int:
        """Of attention over all tokens, counted as Hierarchy.flops is."""
        n = self.tokens
        pairs = n * (n + 1) // 2 if self.causal else n * n
        return 4 * self.head_dim * self.heads * self.batch * pairs

    def describe(self) -> Dict[str, Any]:
        """What identifies a row in the JSON."""
        return dict(
            shape=list(self.shape),
            batch=self.batch,
            heads=self.heads,
            head_dim=self.head_dim,
            causal=self.causal)

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.shape))
        return (f'{size} tokens, batch {self.batch}, {self.heads} heads x '
                f'{self.head_dim}{", causal" if self.causal else ""}')


def inputs(case: Case, args: Namespace, count: int = 3) -> List[Tensor]:
    """Fresh random ``[B, *grid, heads, head_dim]`` with structure at all
    scales.

    White noise has no far field to speak of: its averages vanish, and with
    them every error made there. Here each scale adds as much as the next.
    """

    def one() -> Tensor:
        total, width = 0, 1
        while width == 1 or width < max(case.shape):
            grid = [-(-size // width) for size in case.shape]
            noise = torch.randn(
                case.batch,
                *grid,
                case.heads,
                case.head_dim,
                device=args.device)
            for axis, size in enumerate(case.shape, 1):
                noise = noise.repeat_interleave(width, axis)
                noise = noise.narrow(axis, 0, size)
            total = total + noise
            width *= 4
        return (total / total.square().mean().sqrt()).to(DTYPES[args.dtype])

    return [one() for _ in range(count)]


def synchronize(device: str) -> None:
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def attempt(call: Call, device: str) -> Tuple[Any, Optional[str]]:
    """Runs a call that may fail alone: its result, or one line of reason.

    Raises:
        RuntimeError: if the device is lost (an illegal access, say), after
            which nothing measured in this process means anything.
    """
    try:
        result = call()
        synchronize(device)
        return result, None
    except Exception as error:
        text = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        text = text.replace(f'{ROOT}/', '')
        reason = ('out of memory'
                  if 'out of memory' in str(error) else text[:240])
    gc.collect()  # outside of the handler, which keeps the frames alive
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    return None, reason


def _seconds(call: Call, times: int, device: str) -> float:
    """Mean seconds of one call in a row of ``times``."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / times


def _first(call: Call, device: str, warm_up: bool) -> Tuple[float, int]:
    """Seconds and peak bytes of a run that may be the only one."""
    if warm_up:
        call()  # compiles, tunes, fills caches
    seconds = []
    peak = peak_memory(lambda: seconds.append(_seconds(call, 1, device)),
                       device)
    return seconds[0], peak


def time_in_turns(calls: Dict[str, Call],
                  args: Namespace,
                  expected: Optional[Dict[str, float]] = None) -> dict:
    """Times calls in turns; one that fails or takes too long costs itself.

    As :func:`fma_vision.utils.timing.time_interleaved`, for calls from
    microseconds to many seconds: what is long is sampled less often, once at
    least, and without a warm-up where the run before already was long.

    Args:
        calls: what to time, by name.
        args: ``device``, ``repeats``, and ``limit``: the seconds that one
            call may use up for its samples.
        expected: seconds that a call is expected to take, by name.

    Returns:
        For each name the summary of its samples in seconds, their number
        and ``peak_bytes``, the memory beyond that before the call; or the
        reason why there is none.
    """
    results, times, left, samples, peaks = {}, {}, {}, {}, {}
    for name, call in calls.items():
        guess = (expected or {}).get(name, 0)
        if guess > args.limit:
            results[name] = (f'left out: expected to take {guess:.0f} s, '
                             f'allowed are {args.limit:.0f} s')
            continue
        found, reason = attempt(
            lambda c=call, g=guess: _first(c, args.device, g < 1), args.device)
        if reason:
            results[name] = reason
            continue
        first, peaks[name] = found
        times[name] = max(1, math.ceil(args.least / max(first, 1e-9)))
        sample = first * times[name]
        left[name] = min(args.repeats, int(args.limit / 10 / sample))
        samples[name] = [] if left[name] else [first]
    names = list(times)
    for turn in range(args.repeats):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            if turn < left[name]:
                samples[name].append(
                    _seconds(calls[name], times[name], args.device))
    for name in names:
        results[name] = dict(
            summarise(samples[name]),
            samples=len(samples[name]),
            peak_bytes=peaks[name])
    return {name: results[name] for name in calls}


class Recorder:
    """Keeps the results of a run, and writes them after every row.

    Args:
        path: the JSON; parts measured earlier stay in it.
        args: the command line.
    """

    def __init__(self, path: Path, args: Namespace) -> None:
        self.path, self.args = path, args
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def environment(self) -> Dict[str, Any]:
        args = self.args
        record = _environment.collect_environment(args.device, args.seed)
        if record['commit'] is None and args.commit:
            # A copy without its repository: what the caller says it is.
            record['commit'] = dict(hash=args.commit, modified=None)
        return record

    def start(self, part: str) -> None:
        """Opens a part; what it held before is gone, from the file too."""
        self.part, self.begin = part, time.perf_counter()
        self.found[part] = dict(
            environment=self.environment(),
            setting=dict(backend=self.args.backend, dtype=self.args.dtype),
            rows=[],
            seconds=0.,
            finished=False)
        self.save()

    def set(self, **setting: Any) -> None:
        """Adds to what holds for all rows of the part."""
        self.found[self.part]['setting'].update(setting)

    def rows(self) -> List[Dict[str, Any]]:
        return self.found[self.part]['rows']

    def add(self, row: Dict[str, Any]) -> None:
        self.rows().append(row)
        self.save()

    def save(self, finished: bool = False) -> None:
        part = self.found[self.part]
        part['seconds'] = time.perf_counter() - self.begin
        part['finished'] = finished
        write_json(self.path, self.found)

    def left(self) -> float:
        """Seconds of the part's budget that are left."""
        return self.args.budget - (time.perf_counter() - self.begin)

    def late(self) -> Optional[str]:
        """The reason to leave out what is left of a part, or None."""
        if self.left() >= 0:
            return None
        return f'left out: the part had used its {self.args.budget:.0f} s'


def machine_rates(args: Namespace, side: int, numel: int) -> Dict[str, float]:
    """The machine's own rates: a square matrix product and a copy.

    Args:
        args: the command line.
        side: of the matrices.
        numel: elements of the copied tensor.

    Returns:
        ``matmul_flops`` and ``copy_bytes`` a second (read and written).
    """
    dtype = DTYPES[args.dtype]
    # Random numbers: constant ones toggle fewer bits and run faster.
    a, b = (
        torch.randn(side, side, device=args.device).to(dtype)
        for _ in range(2))
    source = torch.randn(numel, device=args.device).to(dtype)
    target = torch.empty_like(source)
    found = time_in_turns(
        dict(matmul=lambda: torch.mm(a, b), copy=lambda: target.copy_(source)),
        args)
    return dict(
        matmul_flops=2 * side**3 / found['matmul']['median'],
        copy_bytes=2 * source.nbytes / found['copy']['median'])
