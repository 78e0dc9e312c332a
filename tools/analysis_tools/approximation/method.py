"""What a method is to the comparison."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional, Tuple

from torch import Tensor

from .subjects import Subject

Call = Callable[[], Tensor]
CAUSAL, BIDIRECTIONAL = True, False


@dataclass(frozen=True)
class Method:
    """One row: a method with its settings.

    Attributes:
        family (str): Which method.
        name (str): Its settings in words.
        prepare (callable): ``prepare(subject, causal, fitted)`` brings the
            tensors into the method's own layout and returns the call that is
            timed: the attention alone, without projections. It yields
            ``[1, N, heads, head_dim]``.
        settings (dict): For the record.
        modes (tuple[bool]): Whether causal, bidirectional or both.
        fit (callable, optional): ``fit(subject, exact, causal)`` finds
            ``fitted`` on another piece of text than that reported.
        draws (int): Random methods: errors are means over so many seeds.
        reference (bool): Shown for orientation, not compared.
        note (str): What a reader should know.
    """
    family: str
    name: str
    prepare: Callable[[Subject, bool, Any], Call]
    settings: Dict[str, Any] = field(default_factory=dict)
    modes: Tuple[bool, ...] = (CAUSAL, BIDIRECTIONAL)
    fit: Optional[Callable[[Subject, Tensor, bool], Any]] = None
    draws: int = 1
    reference: bool = False
    note: str = ''


def largest_difference(first: Tensor, second: Tensor) -> float:
    """The largest absolute difference, in float64."""
    return float((first.double() - second.double()).abs().max())
