"""Parameters, multiply-adds, seconds and memory of layers, size by size."""

import time
from math import prod
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ..layers.baselines import FullAttention, FullAttention1D
from ..utils.complexity import (attention_layer_macs, count_parameters,
                                measure_complexity)
from ..utils.errors import one_line
from ..utils.timing import peak_memory, summarise, time_interleaved
from .checks import EXACT, MACS, CheckError, check_layer
from .limits import Forecast, Limits, gib, is_out_of_memory
from .specs import LayerSpec
from .subject import Setting, Subject, shape_text

Grid = Tuple[int, ...]
# Below, any layer fits; from there, sizes grow by no more than this.
FEW_TOKENS, STEP = 512, 8
# Samples of one call that take longer together stop at the third.
MOST_SECONDS = 10.
# A call that may be made once more just to be sure, in seconds.
QUICK = 2.


class Obstacle(Exception):
    """Why a layer has no numbers at a size.

    Args:
        status: ``'skipped'`` or ``'failed'``.
        reason: One line.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def rungs(shapes: Sequence[Grid]) -> List[Grid]:
    """The shapes, and smaller ones from which to foretell them.

    Args:
        shapes: Grids to measure.

    Returns:
        Grids by number of tokens.
    """
    found: List[Grid] = []
    for shape in sorted(set(shapes), key=lambda s: (prod(s), s)):
        before = prod(found[-1]) * STEP if found else FEW_TOKENS
        steps = [shape]
        while prod(steps[0]) > before:
            # A fourth of the tokens.
            side = 4 if len(shape) == 1 else 2
            steps.insert(0, tuple(-(-n // side) for n in steps[0]))
        found += steps
    return found


class Contestant:
    """One layer in one mode, at ever larger sizes.

    Args:
        spec: The layer.
        mode: ``'inference'`` or ``'training'``.
        setting: What all layers share.
        limits: What a call may take.
        obstacle: What keeps it from any size.
        count: Count multiply-adds in a run, as the formula leaves some out.
    """

    def __init__(self,
                 spec: LayerSpec,
                 mode: str,
                 setting: Setting,
                 limits: Limits,
                 obstacle: Optional[Obstacle] = None,
                 count: bool = False) -> None:
        self.spec = spec
        self.mode = mode
        self.setting = setting
        self.limits = limits
        self.barred = obstacle
        self.count = count
        self.forecast = Forecast()
        self.subject: Optional[Subject] = None
        self.row: Dict[str, Any] = {}

    def enter(self, grid: Grid) -> None:
        """Goes on to a size: foretells, runs once, looks at the numbers.

        Afterwards :attr:`row` holds the size's numbers so far, or why there
        are none, and :attr:`subject` what to time.

        Args:
            grid: Tokens along each axis, more than before.
        """
        tokens = prod(grid)
        self.subject = None
        self.row = dict(
            layer=self.spec.label,
            config=_plain(self.spec.config),
            shape=list(grid),
            tokens=tokens,
            mode=self.mode)
        try:
            if self.barred is not None:
                raise self.barred
            self._enter(grid)
            self.row['status'] = 'measured'
        except Obstacle as obstacle:
            self._stop(obstacle)

    def _enter(self, grid: Grid) -> None:
        tokens, device = prod(grid), self.setting.device
        subject = self._guard(
            lambda: Subject(self.spec, grid, self.setting, self.mode))
        self.row['parameters'] = count_parameters(subject.layer)
        macs = attention_layer_macs(subject.layer, *grid)
        if macs is not None:
            macs *= self.setting.batch
        if macs is not None and not self.count:
            self.row['macs'] = macs
        reason = self.forecast.obstacle(tokens, macs, self.limits, device)
        if reason:
            raise Obstacle('skipped', reason)
        seconds = self._first_run(subject)
        peak = self._guard(lambda: peak_memory(subject, device))
        self.forecast.add(tokens, macs, seconds, peak)
        left = self.limits.memory
        if left is not None and peak > left:
            raise Obstacle('skipped', f'needs {gib(peak)} of {gib(left)}')
        if macs is None or self.count:
            self.row['macs'] = self._guard(lambda: measure_complexity(
                subject.layer, subject.x.detach()).macs)
        self.row['peak_memory_bytes'] = peak
        self.subject = subject

    def _first_run(self, subject: Subject) -> float:
        """Seconds of a call, the second one where that is quick."""
        result, seconds = self._timed(subject)
        complaint = subject.complaint(result)
        if complaint:
            raise self._bar(Obstacle('failed', complaint))
        del result
        # The first call may have compiled, or built tables.
        if seconds < QUICK or self.row['tokens'] <= FEW_TOKENS * STEP:
            _, seconds = self._timed(subject)
        if seconds > self.limits.seconds:
            raise self._bar(
                Obstacle(
                    'skipped', f'took {seconds:.3g} s a call, '
                    f'{self.limits.seconds:g} s allowed'))
        return seconds

    def _timed(self, subject: Subject) -> Tuple[List[Any], float]:
        self._synchronize()
        start = time.perf_counter()
        result = self._guard(subject)
        self._synchronize()
        return result, time.perf_counter() - start

    def _synchronize(self) -> None:
        if torch.device(self.setting.device).type == 'cuda':
            torch.cuda.synchronize(self.setting.device)

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Calls; an error bars this layer from this size and larger ones."""
        try:
            return call()
        except Exception as error:
            obstacle = self._bar(_obstacle(error))
        # Not above, where it would keep the error, and so its tensors.
        raise obstacle

    def _bar(self, obstacle: Obstacle) -> Obstacle:
        """Keeps this layer from larger sizes, for the reason found here."""
        shape = shape_text(self.row['shape'])
        self.barred = Obstacle(obstacle.status, f'at {shape}: {obstacle}')
        return obstacle

    def _stop(self, obstacle: Obstacle) -> None:
        """Ends this size; frees what a traceback would keep alive."""
        self.subject = None
        obstacle.__traceback__ = None
        self.row.update(status=obstacle.status, reason=str(obstacle))

    def __call__(self) -> None:
        """What is timed; an error ends it without costing the others."""
        if self.subject is None:
            return
        try:
            self.subject()
        except Exception as error:
            self._stop(self._bar(_obstacle(error)))

    def finish(self, samples: List[float]) -> None:
        """Completes the row.

        Args:
            samples: Seconds of this call.
        """
        if self.subject is None:
            return
        seconds = summarise(samples)
        self.forecast.correct(seconds['median'])
        self.row.update(
            seconds=seconds,
            tokens_per_second=self.setting.batch * self.row['tokens'] /
            seconds['median'],
            samples_seconds=samples)


def _obstacle(error: Exception) -> Obstacle:
    if is_out_of_memory(error):
        return Obstacle('skipped', f'out of memory: {one_line(error, 120)}')
    return Obstacle('failed', one_line(error))


def _plain(config: Dict[str, Any]) -> Dict[str, Any]:
    """A config that JSON can hold."""
    return {
        k:
        v if isinstance(v, (str, int, float, bool, list, tuple, dict,
                            type(None))) else getattr(v, '__name__', str(v))
        for k, v in config.items()
    }


def check(spec: LayerSpec, ndim: int, setting: Setting) -> Dict[str, Any]:
    """Checks one layer.

    Returns:
        The errors of :func:`~.checks.check_layer`.

    Raises:
        Obstacle: The layer is wrong, does not build, or has no causal form.
    """
    try:
        return check_layer(spec, ndim, setting)
    except CheckError as error:
        raise Obstacle('failed', f'wrong numbers, not timed: {error}')
    except Exception as error:
        if setting.causal:
            _check_causal_form(spec, ndim, setting)
        raise _obstacle(error)


def _check_causal_form(spec: LayerSpec, ndim: int, setting: Setting) -> None:
    """Refuses a layer that builds, but not as a causal one.

    Raises:
        Obstacle: Says so.
    """
    size = (8, ) * ndim, setting.dim, setting.heads
    try:
        spec.build(*size)
    except Exception:
        return  # wrong in either form
    try:
        spec.build(*size, causal=True)
    except Exception as error:
        raise Obstacle('skipped', f'no causal form: {one_line(error)}')


def runs_on(spec: LayerSpec, ndim: int, setting: Setting) -> bool:
    """Whether a layer takes grids of some axes, tried on a small one."""
    try:
        subject = Subject(spec, (8, ) * ndim, setting, 'inference')
        return not subject.complaint(subject())
    except Exception:
        return False


def add_ratios(rows: List[Dict[str, Any]], specs: Sequence[LayerSpec]) -> None:
    """Adds the ratio of medians to the rows of one size and mode.

    The reference is attention over all tokens, or where that has no numbers
    the first Fast Multipole Attention.

    Args:
        rows: Changed in place.
        specs: Of the rows.
    """
    full = (FullAttention.__name__, FullAttention1D.__name__)
    kinds = [str(spec.config['type']).split('.')[-1] for spec in specs]

    def reference(wanted: Callable[[str], bool]) -> Optional[Dict[str, Any]]:
        return next((row for row, kind in zip(rows, kinds)
                     if wanted(kind) and 'seconds' in row), None)

    base = reference(lambda kind: kind in full) or reference(
        lambda kind: kind.startswith('FMAttention'))
    for row in rows:
        if base is not None and 'seconds' in row:
            row['reference'] = base['layer']
            row['ratio_of_medians'] = (
                row['seconds']['median'] / base['seconds']['median'])


def compare_cost(
        specs: Sequence[LayerSpec],
        shapes: Sequence[Grid],
        setting: Setting,
        limits: Limits,
        modes: Sequence[str] = ('inference', ),
        repeats: int = 7,
        report: Callable[[List[Dict[str, Any]]], None] = print,
        checks: Optional[Dict[str, Any]] = None) -> List[Dict[str, Any]]:
    """Measures layers at several sizes.

    Each is checked first, then runs at small sizes from which the needs of
    larger ones are foretold. Those that fit a size take turns there.

    Args:
        specs: The layers.
        shapes: Grids, all with as many axes.
        setting: What all layers share.
        limits: What a call may take.
        modes: Of ``'inference'`` and ``'training'``.
        repeats: Samples of each call, three of slow ones.
        report: Takes the rows of each size as soon as they are known.
        checks: Filled with the errors that the checks found, by label.

    Returns:
        One row per mode, size and layer: ``status`` is ``'measured'``, or
        ``'skipped'`` or ``'failed'`` with a ``reason``.
    """
    checks = {} if checks is None else checks
    obstacles: Dict[str, Obstacle] = {}
    for spec in specs:
        try:
            checks[spec.label] = check(spec, len(shapes[0]), setting)
        except Obstacle as obstacle:
            obstacles[spec.label] = obstacle
    rows = []
    for mode in modes:
        contestants = [
            Contestant(spec, mode, setting, limits, obstacles.get(spec.label),
                       checks.get(spec.label, {}).get(MACS, 0) > EXACT)
            for spec in specs
        ]
        for grid in rungs(shapes):
            for contestant in contestants:
                contestant.enter(grid)
            if grid not in shapes:
                continue
            calls = {c.spec.label: c for c in contestants if c.subject}
            samples = time_interleaved(
                calls,
                setting.device,
                repeats,
                warmup=0,
                most_seconds=MOST_SECONDS) if calls else {}
            for label, contestant in calls.items():
                contestant.finish(samples[label])
            found = [contestant.row for contestant in contestants]
            add_ratios(found, specs)
            report(found)
            rows += found
    return rows
