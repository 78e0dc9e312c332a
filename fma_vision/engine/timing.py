"""Timing calls side by side, and the memory they need."""

import math
import os
import statistics
import time
from typing import Callable, Dict, List, Mapping, Union

import torch
from torch.autograd import DeviceType

Call = Callable[[], object]

# Of which a median means something.
LEAST_SAMPLES = 3


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _seconds(call: Call, times: int, device: torch.device) -> float:
    """Mean seconds of one call in a row of ``times``."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / times


def time_interleaved(calls: Mapping[str, Call],
                     device: Union[str, torch.device] = 'cpu',
                     repeats: int = 20,
                     warmup: int = 3,
                     least_seconds: float = 0.02,
                     most_seconds: float = math.inf) -> Dict[str, List[float]]:
    """Times several calls in turns, so that drifts hit all alike.

    Every round times each call once; each round starts with another one.
    Calls shorter than ``least_seconds`` are repeated within a sample. One
    untimed run of each call, after the warm-up, decides how often.

    Args:
        calls: What to time, by name.
        device: Where the calls run; CUDA is synchronised around samples.
        repeats: Samples of each call.
        warmup: Untimed runs of each call before.
        least_seconds: The least duration of one sample.
        most_seconds: A call whose samples have taken so long together gets
            no more than ``LEAST_SAMPLES``.

    Returns:
        ``repeats`` samples for each name, fewer of slow calls: seconds of
        one call.
    """
    device = torch.device(device)
    names = list(calls)
    times = {}
    for name in names:
        for _ in range(warmup):
            calls[name]()
        once = _seconds(calls[name], 1, device)
        times[name] = max(1, math.ceil(least_seconds / max(once, 1e-9)))
    samples: Dict[str, List[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken = sum(samples[name]) * times[name]
            if taken > most_seconds and len(samples[name]) >= LEAST_SAMPLES:
                continue
            samples[name].append(_seconds(calls[name], times[name], device))
    return samples


def summarise(samples: List[float]) -> Dict[str, float]:
    """Median, quartiles and extremes of samples, in their unit."""
    if len(samples) > 1:
        low, middle, high = statistics.quantiles(
            samples, n=4, method='inclusive')
    else:
        low = middle = high = samples[0]
    return dict(
        median=middle,
        quartile_1=low,
        quartile_3=high,
        least=min(samples),
        most=max(samples))


def peak_memory(call: Call, device: Union[str, torch.device] = 'cpu') -> int:
    """The most bytes of tensors alive during a call beyond those before.

    On CUDA and on the CPU this is what PyTorch's allocator hands out, so it
    holds the call's intermediate tensors and its result, but no scratch space
    that a library takes from the system by itself.

    Args:
        call: What to measure; run it once before, so that caches exist.
        device: Where it runs.

    Returns:
        Bytes.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return peak
    # The profiler's library logs to the console below this level.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        # Keeps the result alive to the end of the recording.
        result = call()
    del result
    events = [
        event for event in profile.kineto_results.events()
        if event.name() == '[memory]' and event.device_type() == DeviceType.CPU
    ]
    events.sort(key=lambda event: event.start_ns())
    alive = peak = 0
    for event in events:
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
