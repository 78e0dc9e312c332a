"""Other approximations of attention, through the packages users install.

Of each package only the attention itself is used: its projections become
identities, and a convolution of values that Nystromformer's adds (learned, no
part of the approximation) is off. A method's ``prepare(inputs, causal,
example)`` returns the call to time. Inputs begin with query, key and value;
they and the output are ``[1, N, heads, head_dim]``. ``example`` holds inputs
of another text and their exact output, to fit weights on.
"""
from functools import partial
from importlib import import_module
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fma_vision.engine.errors import one_line
from fma_vision.layers.baselines.band import banded_attention
from fma_vision.layers.baselines.linear import linear_attention

BAND, MAPS = 20, 2
Inputs = Sequence[Tensor]
Call = Callable[[], Tensor]


class Method(NamedTuple):
    """One row: a method with its settings."""
    family: str
    name: str  # the settings, in words
    prepare: Callable[[Any, bool, Any], Call]
    modes: Tuple[bool, ...] = (True, False)  # causal, bidirectional
    note: str = ''  # what a reader should know
    package: str = ''  # the distribution that holds it


def packed(inputs: Inputs) -> Tensor:
    """As one projection: ``[1, N, 3 heads head_dim]``."""
    return torch.cat([x.flatten(2) for x in inputs[:3]], -1)


def h_transformer(inputs: Inputs,
                  causal: bool,
                  _: Any = None,
                  block: int = 64) -> Call:
    """The package's layer; the length is a power of two.

    The package sums values of coarse tokens, but counts each as one token
    where it normalises: a channel of ones, summed as values are, mends that.
    """
    module = import_module('h_transformer_1d.h_transformer_1d')
    query, key, value = inputs[:3]
    heads, head_dim = query.shape[2:]
    ones = torch.ones_like(value[..., :1])
    x = packed([
        torch.cat(pair, -1)
        for pair in ((query, 0 * ones), (key, 0 * ones), (value, ones))
    ])
    options = dict(heads=heads, dim_head=head_dim + 1, block_size=block)
    if causal:
        layer = module.CausalHAttention1D(
            1, max_seq_len=query.shape[1], **options)
    else:
        layer = module.HAttention1D(1, **options)
    layer.to_qkv = layer.to_out = nn.Identity()
    layer.scale = head_dim**-.5

    def call() -> Tensor:
        out = layer(x).unflatten(-1, (heads, -1))
        return out[..., :-1] / out[..., -1:]

    return call


def nystromformer(inputs: Inputs,
                  causal: bool,
                  _: Any = None,
                  landmarks: int = 256,
                  iterations: int = 6) -> Call:
    """The package's layer, bidirectional."""
    module = import_module('nystrom_attention')
    heads, head_dim = inputs[0].shape[2:]
    sizes = dict(num_landmarks=landmarks, pinv_iterations=iterations)
    layer = module.NystromAttention(
        1, dim_head=head_dim, heads=heads, residual=False, **sizes)
    layer.to_qkv = layer.to_out = nn.Identity()
    x = packed(inputs)
    return lambda: layer(x).unflatten(-1, (heads, head_dim))


def fields(inputs: Inputs, causal: bool, band: int = BAND) -> Tensor:
    """FMMformer's near and far fields: ``[1 + R, 1, N, heads, head_dim]``."""
    near = banded_attention(*inputs[:3], band, causal)
    far, _ = linear_attention(*inputs[:3], MAPS, causal)
    return torch.cat([near[None], far])


def fmmformer(inputs: Inputs, causal: bool, example: Any) -> Call:
    """Fields, weighted by head and channel with the least error elsewhere."""
    other, exact = example
    # [heads, head_dim, N, 1 + R]
    parts = fields(other, causal)[:, 0].double().permute(2, 3, 1, 0)
    wanted = exact[0].permute(1, 2, 0)[..., None]
    found = torch.linalg.lstsq(parts, wanted).solution[..., 0]
    # [1 + R, 1, 1, heads, head_dim]
    weights = found.permute(2, 0, 1).float()[:, None, None]
    return lambda: (weights * fields(inputs, causal)).sum(0)


def sdpa(inputs: Inputs, causal: bool, _: Any = None) -> Call:
    """PyTorch's attention over all tokens."""
    given = [x.transpose(1, 2).contiguous() for x in inputs[:3]]
    return lambda: scaled_dot_product_attention(
        *given, is_causal=causal).transpose(1, 2)


def band(inputs: Inputs,
         causal: bool,
         _: Any = None,
         width: int = 128) -> Call:
    """Attention inside a band, nothing afar."""
    return lambda: banded_attention(*inputs[:3], width, causal)


METHODS = [
    Method(
        'FMMformer',
        'weights fitted',
        fmmformer,
        note='weights by head and channel, least squares to full attention '
        'on another text'),
    Method('SDPA', 'all tokens', sdpa),
    Method('Band', 'nothing beyond 128 tokens', band),
    *(Method(
        'H-Transformer-1D',
        f'block {size}, masses mended',
        partial(h_transformer, block=size),
        note='the package leaves out pairs: bidirectional, half of them; '
        'causal, most of the far ones',
        package='h-transformer-1d') for size in (16, 64, 128)),
    *(Method('Nystromformer', f'{count} landmarks',
             partial(nystromformer, landmarks=count),
             (False, ), 'has no causal form', 'nystrom-attention')
      for count in (64, 256)),
]


def rivals() -> Tuple[List[Method], Dict[str, str]]:
    """The methods whose package is there, and why others are not."""
    found, missing = [], {}
    for method in METHODS:
        try:
            if method.package:
                import_module(method.package.replace('-', '_'))
            found.append(method)
        except ImportError as error:
            missing[method.family] = (
                f'{method.package} cannot be imported ({one_line(error)}): '
                "pip install -e '.[compare]'")
    return found, missing
