"""Attention layers side by side: what they cost, and what they learn.

Needs MMEngine. ``tools/analysis_tools/compare_attention.py`` is the command.
"""

from .limits import Limits
from .measure import compare_cost, runs_on
from .specs import LayerSpec, config_specs, default_specs, read_specs
from .subject import Setting

__all__ = [
    'LayerSpec', 'Limits', 'Setting', 'compare_cost', 'config_specs',
    'default_specs', 'read_specs', 'runs_on'
]
