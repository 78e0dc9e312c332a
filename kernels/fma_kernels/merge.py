"""Joining attention over disjoint sets of keys by their log-sum-exp."""
from typing import Sequence, Tuple

import torch
from torch import Tensor


def merge(outputs: Sequence[Tensor],
          lses: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    """Attention over a union of disjoint key sets from that over each.

    Args:
        outputs: tensors ``[..., heads, head_dim]``, each softmax-normalised
            over its own keys.
        lses: their log-sum-exps ``[..., heads]``; -inf marks no key at all.

    Returns:
        The output and lse over all keys; 0 and -inf where no set has one.

    Raises:
        ValueError: if the two sequences differ in length or are empty.
    """
    if not outputs or len(outputs) != len(lses):
        raise ValueError('outputs and lses must be equally many and not '
                         f'empty, got {len(outputs)} and {len(lses)}')
    stacked = torch.stack(tuple(lses))  # [sets, ..., heads]
    # A finite pivot keeps -inf - -inf out of values and gradients; that of
    # torch.logsumexp is NaN where every set is empty.
    pivot = stacked.detach().amax(0).clamp(min=torch.finfo(stacked.dtype).min)
    weights = torch.exp(stacked - pivot)
    total = weights.sum(0)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    lse = (total.log() + pivot).masked_fill(empty, -torch.inf)
    weights = (weights / total)[..., None].to(outputs[0].dtype)
    return sum(w * out for w, out in zip(weights, outputs)), lse
