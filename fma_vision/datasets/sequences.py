"""What sets of labelled sequences share."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from fma_vision.registry import FUNCTIONS


@FUNCTIONS.register_module()
def pad_sequences(samples: Sequence[dict]) -> Dict[str, Any]:
    """Make a batch of sequences of different lengths.

    Args:
        samples (sequence[dict]): Each with ``tokens``, int64 ``[n]``, and
            ``label``, an int.

    Returns:
        dict: ``tokens``, int64 ``[B, N]`` with N the longest, filled with
        0; ``key_mask``, bool ``[B, N]``, True = real, or None where all are
        as long; ``labels``, int64 ``[B]``.
    """
    tokens = [sample['tokens'] for sample in samples]
    lengths = torch.tensor([len(row) for row in tokens])
    batch = pad_sequence(tokens, batch_first=True)
    key_mask = torch.arange(batch.shape[1]) < lengths[:, None]
    return dict(
        tokens=batch,
        key_mask=None if key_mask.all() else key_mask,
        labels=torch.tensor([sample['label'] for sample in samples]))


def spread(total: int, samples: Optional[int], name: str) -> np.ndarray:
    """Numbers of at most so many samples, evenly spread over a set.

    Args:
        total (int): Samples of the set.
        samples (int, optional): None takes all.
        name (str): Of the dataset, for the message.

    Returns:
        ndarray: int64, ascending.

    Raises:
        ValueError: ``samples`` is below 1.
    """
    if samples is None or samples >= total:
        return np.arange(total)
    if samples < 1:
        raise ValueError(f'{name}: samples is {samples}; allowed is at least '
                         '1, or None for all')
    return np.arange(samples) * total // samples
