"""Fast Multipole Attention in 1D and 2D: reference, backends, geometry."""
import warnings

import torch

from . import flops  # noqa: F401  registers them
from .functional import explain_backend, fma1d, fma2d
from .geometry import Footprint, Hierarchy, Summary, auto_num_levels
from .merge import merge
from .naive import naive
from .pooling import average_pyramid

__all__ = [
    'Footprint', 'Hierarchy', 'Summary', 'auto_num_levels', 'average_pyramid',
    'explain_backend', 'fma1d', 'fma2d', 'merge', 'naive'
]

# What PyTorch says at each of many places, `functional.py` says once.
warnings.filterwarnings(
    'ignore',
    category=torch.jit.TracerWarning,
    module=r'fma_(kernels|vision)\b')
