"""Arguments of a wrong kind are told by name, in every constructor."""

import inspect
from typing import Any, Dict, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from fma_vision import FMAClassifier, FMATransformer, FMAttention2D, layers
from fma_vision.layers.checks import check_type
from fma_vision.models import (FMALanguageModel, FMALMHead,
                               FMASequenceClassifier, PooledHead)

LAYER = dict(dim=16, num_heads=2)
POOL = dict(ndim=2, cell_size=4, rank=2, head_dim=8)
SEQUENCE = dict(vocab_size=13, embed_dims=16, depth=1, num_heads=2)
# The least that each constructor needs.
PUBLIC: Dict[type, dict] = {
    **{
        cls: LAYER
        for cls in layers.ATTENTION_LAYERS.values()
    },
    **{
        getattr(layers, name): POOL
        for name in layers.__all__ if name.endswith('Summaries')
    },
    layers.RelativeBias: dict(ndim=2, num_heads=2, cell_size=4, rank=1),
    layers.ConditionalPosition: dict(dim=16),
    layers.AbsolutePosition: dict(dim=16, size=4),
    FMATransformer: dict(arch='nano'),
    FMAClassifier: dict(arch='nano'),
    FMALanguageModel: SEQUENCE,
    FMASequenceClassifier: dict(num_classes=3, **SEQUENCE),
    FMALMHead: dict(embed_dims=16, vocab_size=13),
    PooledHead: dict(embed_dims=16, num_classes=3),
}
WRONG = (None, True, '4', 4.5, (4, 4), (4, 'x'), {}, nn.Identity, object(),
         torch.ones(2))


def _arguments(cls: type) -> Dict[str, Any]:
    """Annotations of all arguments, those of base classes included."""
    found: Dict[str, Any] = {}
    for base in cls.__mro__:
        init = vars(base).get('__init__')
        if init is None or not base.__module__.startswith('fma_vision'):
            continue
        names = inspect.signature(init).parameters
        hints = get_type_hints(init)
        for name, hint in hints.items():
            if name in names and names[name].kind is \
                    inspect.Parameter.POSITIONAL_OR_KEYWORD:
                found.setdefault(name, hint)
    return found


def _allowed(value: Any, hint: Any) -> bool:
    try:
        check_type('', value, hint)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize('cls', PUBLIC, ids=lambda cls: cls.__name__)
def test_wrong_kinds_are_told_by_name(cls: type) -> None:
    least = PUBLIC[cls]
    cls(**least)
    arguments = _arguments(cls)
    assert set(least) <= set(arguments)
    for name, hint in arguments.items():
        for value in WRONG:
            if name in ('init_cfg', 'causal') or _allowed(value, hint):
                continue
            with pytest.raises(TypeError, match=rf'\b{name} must be') as info:
                cls(**{**least, name: value})
            assert '\n' not in str(info.value).replace(repr(value), '')


@pytest.mark.parametrize('cls', PUBLIC, ids=lambda cls: cls.__name__)
def test_numpy_numbers_are_numbers(cls: type) -> None:
    """They end up as Python's, which exporters and files want."""
    least = {
        name: np.int64(value) if isinstance(value, int) else value
        for name, value in PUBLIC[cls].items()
    }
    assert vars(cls(**least)).keys() == vars(cls(**PUBLIC[cls])).keys()
    for value in vars(cls(**least)).values():
        assert not isinstance(value, np.generic)


@pytest.mark.parametrize('arguments, message', [
    (dict(patch_size=(4, 4)), r'patch_size must be an int, got \(4, 4\)'),
    (dict(position=nn.Identity), "position must be a str, a dict or None, "
     "got <class"),
    (dict(arch=dict(embed_dims='16', depths=[1], num_heads=[1])),
     "arch: embed_dims must be an int or a sequence with an int each, got"),
    (dict(arch=dict(embed_dims=16, depths=1, num_heads=[1])),
     'arch: depths must be a sequence with an int each, got 1'),
    (dict(arch=dict(embed_dims=16, depths=[1], num_heads=['a'])),
     'arch: num_heads must be a sequence with an int each'),
    (dict(out_indices='0'), "out_indices must be .*, got '0'"),
    (dict(attn=7), 'attn must be .*, got 7'),
    (dict(attn=dict(cell_size=4)), 'attn type must be a name or a class'),
    (dict(attn=dict(type='FMAttention2D', cell_size=(4, 4))),
     r'FMAttention2D: cell_size must be an int, got \(4, 4\)'),
    (dict(attn=dict(type='WindowAttention', window_size=True)),
     'window_size must be an int, got True'),
    (dict(drop_rate=1.), r'drop_rate must be in \[0, 1\), got 1'),
])
def test_messages_of_the_backbone(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        FMATransformer(**{'arch': 'nano', **arguments})


def test_lists_are_tuples() -> None:
    assert layers.AbsolutePosition(4,
                                   [2, 3]).absolute_pos_embed.shape == (1, 2,
                                                                        3, 4)
    assert layers.GlobalFilter(4, 1, size=[2, 3]).size == (2, 3)
    net = FMATransformer(
        dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2)),
        out_indices=[0, 1])
    assert len(net(torch.zeros(1, 3, 16, 16))) == 2


def test_missing_and_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="'num_heads'"):
        FMAttention2D(8)
    with pytest.raises(TypeError, match="'colour'"):
        FMAttention2D(8, 2, colour='red')
