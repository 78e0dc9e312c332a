"""Small networks with each attention layer, as several files test them."""

from typing import Callable, Dict, Tuple

import torch
from torch import Tensor, nn

from fma_vision.models import (FMALanguageModel, FMASequenceClassifier,
                               FMATransformer)

VOCABULARY = 13
# Of maps of 10 x 13 and 5 x 7 tokens.
LAYERS_2D = {
    'avg':
    dict(type='FMAttention2D', cell_size=2),
    'rotary':
    dict(type='FMAttention2D', cell_size=2, positions='rotary'),
    'relative':
    dict(type='FMAttention2D', cell_size=2, positions='relative'),
    'conv':
    dict(type='FMAttention2D', cell_size=2, summaries='conv'),
    'hierarchical':
    dict(type='FMAttention2D', cell_size=2, rank=2, summaries='hierarchical'),
    'grouped_conv':
    dict(type='FMAttention2D', cell_size=2, summaries='grouped_conv'),
    'linear':
    dict(
        type='FMAttention2D',
        cell_size=2,
        summaries='grouped_conv',
        pool_queries='learned'),
    'full':
    dict(type='FullAttention'),
    'window':
    dict(type='WindowAttention', window_size=4),
    'neighborhood':
    dict(type='NeighborhoodAttention', kernel_size=3),
    'fmmformer':
    dict(type='FMMformerAttention2D', kernel_size=3),
    'mano':
    dict(type='MANOAttention', window_size=4, downsample='conv'),
    'long_short':
    dict(type='LongShortAttention', window=3, rank=2),
    'filter':
    dict(type='GlobalFilter', size=(10, 13)),
}
LANGUAGE = {
    **{
        form: dict(summaries=form)
        for form in ('avg', 'grouped_conv', 'conv', 'hierarchical')
    },
    'shared':
    dict(summaries=dict(type='hierarchical', shared=True)),
    'untied':
    dict(head=dict(tied=False)),
    'learned positions':
    dict(positions='learned', max_length=70),
    'relative':
    dict(attn=dict(positions='relative')),
    'bidirectional':
    dict(causal=False),
    'linear':
    dict(causal=False, attn=dict(pool_queries='learned')),
    'full':
    dict(attn='FullAttention1D'),
    'fmmformer':
    dict(attn=dict(type='FMMformerAttention1D', band=3)),
    'long_short':
    dict(attn=dict(type='LongShortAttention1D', window=4, rank=2, segment=8)),
    'fastformer':
    dict(attn='Fastformer', causal=False, positions='none'),
}
Network = Tuple[nn.Module, Tensor]


def _stirred(net: nn.Module) -> nn.Module:
    """With weights large enough for attention to matter."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=.2)
    return net


def backbone(attn: dict, **kwargs) -> Network:
    """A network of two stages and an image of 10 x 13 patches."""
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2])
    net = FMATransformer(
        arch, attn=attn, out_indices=(0, 1), drop_path_rate=0., **kwargs)
    return _stirred(net), torch.randn(2, 3, 40, 50)


def language_model(**kwargs) -> Network:
    """A network of one block and two texts of 70 tokens."""
    torch.manual_seed(0)
    options = dict(embed_dims=16, depth=1, num_heads=2, cell_size=4, rank=2)
    net = FMALanguageModel(VOCABULARY, **{**options, **kwargs})
    return _stirred(net), torch.randint(VOCABULARY, (2, 70))


def classifier() -> Network:
    """Of sequences."""
    torch.manual_seed(0)
    net = FMASequenceClassifier(
        VOCABULARY, 3, 16, depth=1, num_heads=2, cell_size=4, rank=2)
    return _stirred(net), torch.randint(VOCABULARY, (2, 70))


NETWORKS: Dict[str, Callable[[], Network]] = {
    **{
        f'backbone {name}': lambda attn=attn: backbone(attn)
        for name, attn in LAYERS_2D.items()
    },
    **{
        f'language {name}': lambda options=options: language_model(**options)
        for name, options in LANGUAGE.items()
    }, 'classifier': classifier
}


def joined(output) -> Tensor:
    """What a network gives as one vector, for comparisons."""
    outputs = output if isinstance(output, (tuple, list)) else [output]
    return torch.cat([x.flatten() for x in outputs])
