"""What a call carries inside the package, beside its hierarchy."""
from dataclasses import dataclass
from typing import NamedTuple, Optional

from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What a call carries beside its tensors and its hierarchy.

    Attributes:
        backend: a module of :mod:`fma_kernels.backends`.
        mass: whether log(mass) is added to the logits of summaries.
        scale: factor of the logits.
        dropout_p: probability that a normalised weight is dropped.
    """
    backend: str = 'torch'
    mass: bool = True
    scale: float = 1.0
    dropout_p: float = 0.0


class Inputs(NamedTuple):
    """The tensors of one call of the core op.

    Attributes:
        query, key, value: ``[B, *grid, heads, head_dim]``.
        key_summaries, value_summaries: packed ``[B, M_total, heads,
            head_dim]``, in the dtype of ``query``. The op itself takes None
            for the average; a backend never sees it.
        key_mask: bool ``[B, *grid]``, True = real.
        seed: int64 scalar, where ``dropout_p > 0``.
        near_bias: ``[heads, (4m - 1) ** d]``, by token offset.
        far_bias: ``[heads, levels, parts, 7 ** d]``, by cell offset.
    """
    query: Tensor
    key: Tensor
    value: Tensor
    key_summaries: Optional[Tensor]
    value_summaries: Optional[Tensor]
    key_mask: Optional[Tensor] = None
    seed: Optional[Tensor] = None
    near_bias: Optional[Tensor] = None
    far_bias: Optional[Tensor] = None
