"""Classification of whole sequences of tokens."""

from ...registry import HAS_MMENGINE
from .classifier import FMASequenceClassifier
from .head import PooledHead

__all__ = ['FMASequenceClassifier', 'PooledHead']

if HAS_MMENGINE:
    from .task import SequenceClassifierTask
    __all__ += ['SequenceClassifierTask']
