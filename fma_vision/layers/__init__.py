"""Attention layers on torch and timm alone.

All attention layers share one interface: ``layer(x, key_mask=None)`` maps
``[B, *grid, dim]`` to the same shape, channels last.
"""

from .attention import FMAttention1D, FMAttention2D
from .baselines import FullAttention, WindowAttention
from .build import ATTENTION_LAYERS, build_attention
from .positions import ConditionalPosition, build_position
from .summaries import AverageSummaries, GroupedConvSummaries, build_summaries

__all__ = [
    'ATTENTION_LAYERS', 'AverageSummaries', 'ConditionalPosition',
    'FMAttention1D', 'FMAttention2D', 'FullAttention', 'GroupedConvSummaries',
    'WindowAttention', 'build_attention', 'build_position', 'build_summaries'
]
