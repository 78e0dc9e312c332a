"""Changes of FMA, as options of a config."""
from typing import Any, Dict

ATTN = 'model.backbone.attn'
HIERARCHICAL = {
    f'{ATTN}.summaries.type': 'hierarchical',
    f'{ATTN}.summaries.shared': True,
}
RELATIVE = {f'{ATTN}.positions': 'relative'}
ROTARY = {f'{ATTN}.positions': 'rotary'}
SLOPES = {**RELATIVE, f'{ATTN}.relative_slope': 1.}
# What changes in FMA with cells of 4, rank 1, averages and mass.
ABLATIONS: Dict[str, Dict[str, Any]] = {
    'cell-2': {
        f'{ATTN}.cell_size': 2
    },
    'cell-8': {
        f'{ATTN}.cell_size': 8
    },
    'rank-2': {
        f'{ATTN}.rank': 2
    },
    'rank-4': {
        f'{ATTN}.rank': 4
    },
    'levels-1': {
        f'{ATTN}.num_levels': 1
    },
    'mass-off': {
        f'{ATTN}.mass': False
    },
    'summaries-grouped_conv': {
        f'{ATTN}.summaries': 'grouped_conv'
    },
    'summaries-conv': {
        f'{ATTN}.summaries': 'conv'
    },
    'summaries-hierarchical': {
        f'{ATTN}.summaries': 'hierarchical'
    },
    'summaries-hierarchical-shared': HIERARCHICAL,
    'pool-queries-learned': {
        f'{ATTN}.summaries': 'hierarchical',
        f'{ATTN}.pool_queries': 'learned'
    },
    'position-none': {
        'model.backbone.position': 'none'
    },
    'position-rotary': {
        'model.backbone.position': 'none',
        **ROTARY
    },
    'position-relative': {
        'model.backbone.position': 'none',
        **RELATIVE
    },
    'slopes': SLOPES,
    'rotary': ROTARY,
    'position-absolute': {
        'model.backbone.position.type': 'AbsolutePosition',
        'model.backbone.position.size': 32
    },
}
