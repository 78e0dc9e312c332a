"""The layers to compare: defaults, names with arguments, config files."""

import ast
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from torch import nn

from ..engine import UserError, load_config
from ..layers import build_attention
from ..layers.build import resolve_attention

# An argument with this value becomes the grid: for layers whose weights are
# made for one size.
GRID = 'grid'


@dataclass(frozen=True)
class LayerSpec:
    """One attention layer.

    Attributes:
        label: Its name in tables; unique in a comparison.
        config: ``type`` and arguments, as of
            :func:`~fma_vision.layers.build_attention`. An argument that is
            ``'grid'`` stands for the grid.
        ndim: Axes of the grid, 1 or 2; None if unknown.
    """
    label: str
    config: Dict[str, Any]
    ndim: Optional[int] = None

    def build(self,
              grid: Tuple[int, ...],
              dim: int,
              heads: int,
              causal: bool = False) -> nn.Module:
        """Builds the layer.

        Args:
            grid: Tokens along each axis.
            dim: Channels.
            heads: Heads.
            causal: Ask for the causal form.

        Raises:
            TypeError, ValueError: An argument is wrong, or there is no
                causal form.
        """
        size = grid[0] if len(grid) == 1 else grid
        config = {
            key: size if value == GRID else value
            for key, value in self.config.items()
        }
        if causal:
            config['causal'] = True
        return build_attention(config, dim, heads)

    def for_model(self) -> Dict[str, Any]:
        """The config inside a model, whose maps have several sizes."""
        return {k: v for k, v in self.config.items() if v != GRID}


_DEFAULTS = {
    2: (
        ('FMA', dict(type='FMAttention2D', cell_size=4)),
        ('FMA-linear',
         dict(type='FMAttention2D', cell_size=4, pool_queries=True)),
        ('FullAttention', dict(type='FullAttention')),
        ('WindowAttention', dict(type='WindowAttention', window_size=7)),
        ('NeighborhoodAttention',
         dict(type='NeighborhoodAttention', kernel_size=7)),
        ('FMMformerAttention2D', dict(type='FMMformerAttention2D')),
        ('MANOAttention', dict(type='MANOAttention')),
        ('GlobalFilter', dict(type='GlobalFilter', size=GRID)),
        ('LongShortAttention', dict(type='LongShortAttention')),
    ),
    1: (
        # The cells of the language model.
        ('FMA', dict(type='FMAttention1D', cell_size=64, rank=4)),
        ('FMA-linear',
         dict(type='FMAttention1D', cell_size=64, rank=4, pool_queries=True)),
        ('FullAttention1D', dict(type='FullAttention1D')),
        ('FMMformerAttention1D', dict(type='FMMformerAttention1D')),
        ('LongShortAttention1D', dict(type='LongShortAttention1D')),
        ('Fastformer', dict(type='Fastformer')),
    ),
}
_LABELS = {label for layers in _DEFAULTS.values() for label, _ in layers}
_NDIM = {
    config['type']: ndim
    for ndim, layers in _DEFAULTS.items()
    for _, config in layers
}


def ndim_of(config: Dict[str, Any]) -> Optional[int]:
    """Axes of a layer's grid, None if unknown.

    Raises:
        ValueError: There is no such layer.
    """
    cls = resolve_attention(config.get('type'))
    for base in cls.__mro__:
        if base.__name__ in _NDIM:
            return _NDIM[base.__name__]
    return getattr(cls, 'ndim', None)


def default_specs(ndim: int) -> List[LayerSpec]:
    """All attention layers of this package for a number of axes.

    Args:
        ndim: 1 or 2.
    """
    return [
        LayerSpec(label, config, ndim) for label, config in _DEFAULTS[ndim]
    ]


def config_specs(ndim: int, own: Dict[str, Any]) -> List[LayerSpec]:
    """The default layers inside a model that has a layer of its own.

    Where a default is of the own layer's type, it takes its arguments, as
    the cells of a config suit its images.

    Args:
        ndim: 1 or 2.
        own: The config's layer.
    """
    specs = []
    for spec in default_specs(ndim):
        config = spec.config
        if config['type'] == str(own.get('type')).split('.')[-1]:
            pooled = {k: v for k, v in config.items() if k == 'pool_queries'}
            config = {**config, **own, **pooled, 'type': config['type']}
        specs.append(LayerSpec(spec.label, config, ndim))
    return specs


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is a text, as shells eat quotes."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _parse(text: str) -> Dict[str, Any]:
    """Reads ``NAME`` or ``NAME(key=value, ...)``.

    Raises:
        UserError: It is neither.
    """
    try:
        node = ast.parse(text.strip(), mode='eval').body
        keywords = []
        if isinstance(node, ast.Call):
            if node.args or any(k.arg is None for k in node.keywords):
                raise ValueError('arguments need names')
            node, keywords = node.func, node.keywords
        if not isinstance(node, (ast.Name, ast.Attribute)):
            raise ValueError('no name')
        config = {k.arg: _value(k.value) for k in keywords}
        return dict(type=ast.unparse(node), **config)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(f'--layers {text!r} is not NAME, NAME(key=value, ...) '
                        f'or a config file: {error}') from error


def _label(config: Dict[str, Any]) -> str:
    arguments = ', '.join(f'{key}={value}' for key, value in config.items()
                          if key not in ('type', 'label', 'ndim'))
    name = config['type']
    name = name.__name__ if isinstance(name, type) else name
    return f'{name}({arguments})' if arguments else name


def _spec(config: Dict[str, Any], where: str) -> LayerSpec:
    """A layer of the user's.

    Args:
        config: Of the layer, and where wanted ``label`` and ``ndim``.
        where: The config comes from, for messages.

    Raises:
        UserError: There is no such layer.
    """
    config = dict(config)
    if 'type' not in config:
        raise UserError(f'{where}: a layer without `type`: {config}')
    label = config.pop('label', None) or _label(config)
    ndim = config.pop('ndim', None)
    if ndim not in (None, 1, 2):
        raise UserError(f'{where}: ndim of {label} must be 1 or 2, got '
                        f'{ndim!r}')
    try:
        known = ndim_of(config)
    except ValueError as error:
        raise UserError(f'{where}: {error}') from error
    return LayerSpec(label, config, ndim or known)


def _read_file(path: str) -> List[LayerSpec]:
    """The layers in a config's list ``layers``."""
    layers = load_config(path).get('layers')
    if not isinstance(layers, (list, tuple)) or not all(
            isinstance(x, dict) for x in layers) or not layers:
        raise UserError(f'{path} must hold `layers`, a list of '
                        'dict(type=..., ...)')
    return [_spec(dict(layer), path) for layer in layers]


def read_specs(items: Sequence[str]) -> List[LayerSpec]:
    """Reads the layers on a command line.

    Args:
        items: Each a layer's name or ``NAME(key=value, ...)``, where
            ``FMA`` is that of 2D and of 1D; ``FMA-linear``; or a config file
            with ``layers = [dict(type=..., ...), ...]``, whose dicts may also
            hold ``label`` and ``ndim``; its ``custom_imports`` are done.

    Returns:
        The layers, in order.

    Raises:
        UserError: An item is none of these, or two layers share a label.
    """
    specs: List[LayerSpec] = []
    for item in items:
        if item.endswith(('.py', '.json', '.yaml', '.yml')):
            specs += _read_file(item)
            continue
        plain = item in _LABELS
        config = dict(type=item) if plain else _parse(item)
        known = [
            spec for ndim in _DEFAULTS for spec in default_specs(ndim)
            if spec.label == config['type']
        ]
        for spec in known:
            arguments = {**config, 'type': spec.config['type']}
            specs.append(
                replace(spec, label=item, config={
                    **spec.config,
                    **arguments
                }))
        if not known:
            specs.append(_spec({**config, 'label': item}, '--layers'))
    seen = set()
    for spec in specs:
        # Of the defaults, some have one name in 1D and in 2D.
        if (spec.label, spec.ndim) in seen:
            raise UserError(f'--layers: {spec.label} is there twice; `label` '
                            'in a config file gives another name')
        seen.add((spec.label, spec.ndim))
    return specs
