"""Other attention layers in the same frame, for side-by-side runs."""

from .full import FullAttention
from .window import WindowAttention

__all__ = ['FullAttention', 'WindowAttention']
