"""Batches of sequences that are about as long, so that little is padded."""

import itertools
from typing import Any, Iterator, Optional

import numpy as np
import torch
from torch.utils.data import Sampler

from fma_vision.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class LengthGroupedSampler(Sampler):
    """An endless shuffled stream whose batches hold similar lengths.

    The set is shuffled again and again. ``pool`` batches for each process
    are drawn from that at a time, sorted by length, cut into batches, and
    those are shuffled. At each step the processes get neighbours in length,
    so that all have about the same to do. The seed decides the stream, and a
    resumed run goes on where it was.

    Args:
        dataset (Dataset): With an attribute ``sizes``, ``[samples]``.
        batch_size (int): As the data loader has it.
        pool (int): Batches of each process that are sorted together.
            Defaults to 32.
        seed (int, optional): Must be the same in all processes. None lets
            them agree on one.

    Raises:
        TypeError: The dataset has no ``sizes``.
        ValueError: An argument is below 1.
    """

    def __init__(self,
                 dataset: Any,
                 batch_size: int,
                 pool: int = 32,
                 seed: Optional[int] = None) -> None:
        from mmengine.dist import get_dist_info, sync_random_seed
        if not hasattr(dataset, 'sizes'):
            raise TypeError('LengthGroupedSampler: dataset must have sizes, '
                            f'{type(dataset).__name__} has none')
        if batch_size < 1 or pool < 1:
            raise ValueError('LengthGroupedSampler: batch_size and pool must '
                             f'be at least 1, got {batch_size} and {pool}')
        self.sizes = np.asarray(dataset.sizes)
        self.batch_size, self.pool = batch_size, pool
        self.seed = sync_random_seed() if seed is None else seed
        self.rank, self.world_size = get_dist_info()
        self._skipped = 0

    def _shuffled(self, generator: torch.Generator) -> Iterator[int]:
        while True:
            yield from torch.randperm(
                len(self.sizes), generator=generator).tolist()

    def _stream(self) -> Iterator[int]:
        """Samples of this process from the start of training."""
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        samples = self._shuffled(generator)
        shape = (self.pool, self.world_size, self.batch_size)
        while True:
            drawn = np.fromiter(
                itertools.islice(samples, int(np.prod(shape))), np.int64)
            order = np.argsort(self.sizes[drawn], kind='stable')
            batches = drawn[order].reshape(shape)
            for i in torch.randperm(self.pool, generator=generator).tolist():
                yield from batches[i, self.rank].tolist()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._stream(), self._skipped, None)

    def skip(self, num_samples: int) -> None:
        """Start after so many samples of this process, to resume.

        Raises:
            ValueError: It is negative.
        """
        if num_samples < 0:
            raise ValueError('LengthGroupedSampler: num_samples must be at '
                             f'least 0, got {num_samples}')
        self._skipped = num_samples

    def __len__(self) -> int:
        return len(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: the stream has no epochs that end."""
