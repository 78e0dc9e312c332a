"""Fast Multipole Attention for images and sequences.

Importing the package makes the layers available, registers the backbones
with timm and, where MMEngine is installed, with its registries under the
scope ``fma_vision``.
"""

from .layers import (FMAttention1D, FMAttention2D, FullAttention,
                     WindowAttention, build_attention)
from .models import FMALanguageModel, FMALMHead, FMATransformer
from .timm_models import FMAClassifier
from .version import __version__

__all__ = [
    'FMAClassifier', 'FMALMHead', 'FMALanguageModel', 'FMATransformer',
    'FMAttention1D', 'FMAttention2D', 'FullAttention', 'WindowAttention',
    'build_attention', '__version__'
]
