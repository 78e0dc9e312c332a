"""Attention layers on torch and timm alone.

All attention layers share one interface: ``layer(x, key_mask=None)`` maps
``[B, *grid, dim]`` to the same shape, channels last.
"""

from .attention import FMAttention1D, FMAttention2D
from .baselines import (Fastformer, FMMformerAttention1D, FMMformerAttention2D,
                        FullAttention, FullAttention1D, GlobalFilter,
                        LongShortAttention, LongShortAttention1D,
                        MANOAttention, NeighborhoodAttention, WindowAttention)
from .build import ATTENTION_LAYERS, build_attention
from .positions import (AbsolutePosition, ConditionalPosition, build_position,
                        rotary_table, rotate)
from .relative_bias import RelativeBias
from .summaries import (AverageSummaries, ConvSummaries, GroupedConvSummaries,
                        HierarchicalSummaries, build_summaries)

__all__ = [
    'ATTENTION_LAYERS', 'AbsolutePosition', 'AverageSummaries',
    'ConditionalPosition', 'ConvSummaries', 'FMAttention1D', 'FMAttention2D',
    'FMMformerAttention1D', 'FMMformerAttention2D', 'Fastformer',
    'FullAttention', 'FullAttention1D', 'GlobalFilter', 'GroupedConvSummaries',
    'HierarchicalSummaries', 'LongShortAttention', 'LongShortAttention1D',
    'MANOAttention', 'NeighborhoodAttention', 'RelativeBias',
    'WindowAttention', 'build_attention', 'build_position', 'build_summaries',
    'rotary_table', 'rotate'
]
