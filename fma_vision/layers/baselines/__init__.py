"""Other attention layers in the same frame, for side-by-side runs."""

from .full import FullAttention
from .full1d import FullAttention1D
from .window import WindowAttention

__all__ = ['FullAttention', 'FullAttention1D', 'WindowAttention']
