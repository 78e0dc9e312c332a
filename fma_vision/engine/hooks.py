"""Hooks of the runner."""
import random
import time
from pathlib import Path
from typing import (Any, Callable, Iterator, List, Optional, Sequence, Tuple,
                    Union)

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import IterableDataset, Sampler

from fma_vision.engine.files import write_bytes
from fma_vision.registry import HOOKS


def _seed_generators(*parts: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, on every device.

    Args:
        *parts: What decides the seed; none is negative.
    """
    # A polynomial in a large odd number keeps neighbours apart.
    seed = 0
    for part in parts:
        seed = (seed * 6364136223846793005 + part + 1) % 2**63
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class _PlacedIndex(int):
    """Index of a sample that knows its place in the training.

    Attributes:
        place (tuple[int]): Seed of the run, rank, epoch, and how many
            samples came before in it.
    """
    place: Tuple[int, ...]


class _PlacedSampler(Sampler):
    """A sampler whose indices know their place in the training.

    Args:
        sampler (Sampler): Whose order it is.
        seed, rank (int): Of this process of the run.
    """

    def __init__(self, sampler: Sampler, seed: int, rank: int) -> None:
        self.sampler = sampler
        self.key = seed, rank
        self.epoch = self.done = 0

    def __iter__(self) -> Iterator[_PlacedIndex]:
        for value in self.sampler:
            index = _PlacedIndex(value)
            index.place = *self.key, self.epoch, self.done
            # Counts on where a loop over iterations starts anew.
            self.done += 1
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        # What batch samplers ask for; a copy has nothing yet.
        if name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self.done = epoch, 0
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    @property
    def skip(self) -> Callable[[int], None]:
        """Goes on after so many samples, if the sampler can."""
        skip = self.sampler.skip

        def counted(num_samples: int) -> None:
            skip(num_samples)
            self.done = num_samples

        return counted


class _SeededSamples:
    """Reads samples of a dataset, each from a seed of its own.

    Args:
        dataset (Dataset): The dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[_PlacedIndex]) -> List[Any]:
        """What PyTorch calls ``__getitems__``, in whatever process."""
        samples = []
        for index in indices:
            _seed_generators(*index.place)
            samples.append(self.dataset[int(index)])
        return samples


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes an interrupted run draw what it would have drawn.

    Checkpoints hold no state of random generators, and hardly could: worker
    processes, which read ahead, have their own. Here every sample and every
    iteration starts from a seed of its own, which brings the generators of
    Python, NumPy and PyTorch into the state that they had at this point of
    the run: the run's seed, the rank and the place decide. The number of
    workers then decides nothing.
    """

    def before_train(self, runner: Any) -> None:
        """Let samples be read from seeds of their own."""
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        if sampler is None or isinstance(sampler, _PlacedSampler) or \
                isinstance(loader.dataset, IterableDataset):
            return
        placed = _PlacedSampler(sampler, runner.seed, get_rank())
        loader.batch_sampler.sampler = placed
        if loader.sampler is sampler:
            # As an attribute, the loader refuses it.
            vars(loader)['sampler'] = placed
        loader.dataset.__getitems__ = _SeededSamples(loader.dataset)

    def before_train_iter(self, runner: Any, *args: Any,
                          **kwargs: Any) -> None:
        """Seed the generators of this process."""
        _seed_generators(runner.seed, get_rank(), runner.iter)


@register_backend('checkpoints', force=True)
class _CheckpointFiles(LocalBackend):
    """Files that are whole or absent; old ones go once a new one is there."""

    def __init__(self) -> None:
        self._outdated: List[str] = []

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write a file whole or not at all."""
        write_bytes(filepath, obj)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Remember a file to remove."""
        self._outdated.append(str(filepath))

    def remove_outdated(self, kept: Sequence[Optional[str]]) -> None:
        """Remove what was remembered, except files written since."""
        for path in self._outdated:
            if path not in kept:
                super().remove(path)
        self._outdated.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's hook, and always a checkpoint to go on from.

    MMEngine removes an old checkpoint before it writes the new one, which a
    full disk or a killed process then leaves damaged. Here a file is written
    under another name first, and old ones are removed last. Not for remote
    places, which have ways of their own.
    """

    def before_train(self, runner: Any) -> None:
        """Choose how files are written; remove what a killed run left."""
        place = str(self.out_dir or runner.work_dir)
        if '://' not in place and not self.file_client_args:
            self.backend_args = self.backend_args or dict(
                backend='checkpoints')
        super().before_train(runner)
        if is_main_process() and self._late:
            for stale in Path(self.out_dir).glob('.*.pth.*'):
                stale.unlink()

    @property
    def _late(self) -> bool:
        return isinstance(self.file_backend, _CheckpointFiles)

    def _remove_outdated(self) -> None:
        if self._late:
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            self.file_backend.remove_outdated(
                [self.last_ckpt,
                 getattr(self, 'best_ckpt_path', None), *best])

    def _save_checkpoint_with_step(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint_with_step(*args, **kwargs)
        self._remove_outdated()

    def _save_best_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_best_checkpoint(*args, **kwargs)
        self._remove_outdated()


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
