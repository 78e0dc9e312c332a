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
    lse = torch.logsumexp(stacked, dim=0)
    # A finite pivot keeps -inf - -inf out of values and gradients.
    pivot = lse.masked_fill(lse == -torch.inf, 0)
    weights = torch.exp(stacked - pivot)[..., None].to(outputs[0].dtype)
    return sum(w * out for w, out in zip(weights, outputs)), lse
