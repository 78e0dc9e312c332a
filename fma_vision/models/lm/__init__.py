"""The 1D language model: training, evaluation and streaming generation."""

from ...registry import HAS_MMENGINE
from .generation import sample
from .head import FMALMHead
from .language_model import FMALanguageModel
from .masking import mask_tokens
from .streaming import LMState

__all__ = ['FMALMHead', 'FMALanguageModel', 'LMState', 'mask_tokens', 'sample']

if HAS_MMENGINE:
    from .task import LanguageModelTask
    __all__ += ['LanguageModelTask']
