"""Backbones: images in, a tuple of feature maps out."""

from .fma_transformer import FMATransformer

__all__ = ['FMATransformer']
