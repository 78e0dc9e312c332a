"""Models, registered in the scope ``fma_vision``."""

from ..layers import ATTENTION_LAYERS
from ..registry import HAS_MMENGINE, MODELS
from .backbones import FMATransformer
from .lm import FMALanguageModel, FMALMHead
from .sequence import FMASequenceClassifier, PooledHead

for _layer in ATTENTION_LAYERS.values():
    MODELS.register_module(module=_layer)

__all__ = [
    'FMALMHead', 'FMALanguageModel', 'FMASequenceClassifier', 'FMATransformer',
    'PooledHead'
]

if HAS_MMENGINE:
    from .padding_mask import PaddingMask
    __all__ += ['PaddingMask']
