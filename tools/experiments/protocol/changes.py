"""Changes of FMA, as options of a config."""
from typing import Any, Dict

CELLS = 'model.backbone.attn'
HIERARCHICAL = {
    f'{CELLS}.summaries.type': 'hierarchical',
    f'{CELLS}.summaries.shared': True,
}
RELATIVE = {f'{CELLS}.positions': 'relative'}
ROTARY = {f'{CELLS}.positions': 'rotary'}
SLOPES = {**RELATIVE, f'{CELLS}.relative_slope': 1.}
# What changes in FMA with cells of 4, rank 1, averages and mass.
ABLATIONS: Dict[str, Dict[str, Any]] = {
    'cell-2': {
        f'{CELLS}.cell_size': 2
    },
    'cell-8': {
        f'{CELLS}.cell_size': 8
    },
    'rank-2': {
        f'{CELLS}.rank': 2
    },
    'rank-4': {
        f'{CELLS}.rank': 4
    },
    'levels-1': {
        f'{CELLS}.num_levels': 1
    },
    'mass-off': {
        f'{CELLS}.mass': False
    },
    'summaries-grouped_conv': {
        f'{CELLS}.summaries': 'grouped_conv'
    },
    'summaries-conv': {
        f'{CELLS}.summaries': 'conv'
    },
    'summaries-hierarchical': {
        f'{CELLS}.summaries': 'hierarchical'
    },
    'summaries-hierarchical-shared': HIERARCHICAL,
    'pool-queries-learned': {
        f'{CELLS}.summaries': 'hierarchical',
        f'{CELLS}.pool_queries': 'learned'
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
