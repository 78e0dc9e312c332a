"""Hooks of the runner."""
import time
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from fma_vision.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Makes an interrupted run draw what it would have drawn.

    Checkpoints hold no state of random generators, so that dropout and
    hidden tokens of a resumed run would differ. Here every iteration starts
    from a seed of its own: the run's, the rank and the iteration decide.
    """

    def before_train_iter(self, runner: Any, *args: Any,
                          **kwargs: Any) -> None:
        """Seed PyTorch's generators, on every device."""
        parts = (runner.seed or 0, get_rank(), runner.iter)
        # A polynomial in a large odd number keeps neighbours apart.
        seed = 0
        for part in parts:
            seed = (seed * 6364136223846793005 + part + 1) % 2**63
        torch.manual_seed(seed)


@HOOKS.register_module()
class TimeLimitHook(Hook):
    """Ends a training in time, with a checkpoint to resume from.

    A loop over iterations ends after the first one past the deadline. A loop
    over epochs cannot be resumed inside one, so it ends after the last epoch
    that leaves time for another as long as the longest so far.

    Args:
        deadline (float): Seconds since the epoch, as ``time.time()``.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.longest = 0.

    def before_train_epoch(self, runner: Any) -> None:
        """Start the clock of an epoch."""
        self.started = time.time()

    def after_train_epoch(self, runner: Any) -> None:
        """Stop a loop over epochs where the next one would end too late."""
        loop, now = runner.train_loop, time.time()
        self.longest = max(self.longest, now - self.started)
        if isinstance(loop, EpochBasedTrainLoop) and \
                loop.epoch + 1 < loop.max_epochs and \
                now + self.longest > self.deadline:
            self._stop(runner)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Stop a loop over iterations that is past the deadline."""
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and \
                loop.iter + 1 < loop.max_iters and \
                time.time() > self.deadline:
            self._stop(runner)

    def _stop(self, runner: Any) -> None:
        runner.logger.info('The time is up: the training stops here')
        runner.train_loop.stop_training = True
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                # Runs after this one, and now saves whatever its interval.
                hook.interval = 1
