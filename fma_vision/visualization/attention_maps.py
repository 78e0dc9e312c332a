"""Where a token looks: the weights of an attention layer, as maps."""

import copy
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..layers import (FMAttention2D, FMMformerAttention2D, FullAttention,
                      NeighborhoodAttention, WindowAttention)
from ..models.backbones.blocks import Block

# Their heads put out weighted sums of the values of single tokens.
WEIGHING = (FMAttention2D, FMMformerAttention2D, FullAttention,
            NeighborhoodAttention, WindowAttention)

Layers = Dict[str, nn.Module]


def map_layers(model: nn.Module) -> Layers:
    """The layers of a backbone that :func:`attention_maps` can draw.

    Args:
        model: Any module with an :class:`~fma_vision.models.FMATransformer`
            inside.

    Returns:
        dict[str, Module]: By name; empty if there are none.
    """
    return {
        f'{name}.attn'.lstrip('.'): block.attn
        for name, block in model.named_modules()
        if isinstance(block, Block) and isinstance(block.attn, WEIGHING)
    }


@contextmanager
def record_inputs(layers: Layers) -> Iterator[Dict[str, List[Tensor]]]:
    """Keep what layers are given while their model runs.

    Args:
        layers: From :func:`map_layers`.

    Yields:
        dict[str, list[Tensor]]: By the layer's name, ``[B, H, W, dim]`` of
        each call.
    """
    found: Dict[str, List[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Any:

        def hook(_: nn.Module, arguments: Tuple[Tensor, ...]) -> None:
            found[name].append(arguments[0].detach())

        return hook

    hooks = [
        layer.register_forward_pre_hook(keep(name))
        for name, layer in layers.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_maps(layer: nn.Module, x: Tensor,
                   queries: Sequence[Tuple[int, int]]) -> Tensor:
    """How much each of some tokens takes of the value of every token.

    The output of a head is a weighted sum of values, so its gradient by the
    values is the weights, whatever computes them: a summary's weight falls
    on the tokens that it was pooled from.

    Args:
        layer: One of ``WEIGHING``; it is left as it is, and looked at in eval
            mode.
        x: ``[1, H, W, dim]``, what the layer is given.
        queries: Rows and columns of tokens, at least one.

    Returns:
        Tensor: float32 ``[queries, heads, H, W]``. Each map sums to 1, but
        for FMMformer's, whose fields have learned weights. Of learned
        summaries, which weigh each channel, these are means over channels.

    Raises:
        ValueError: The layer is another one, ``x`` is no such batch of one,
            or a query is outside.
    """
    if not isinstance(layer, WEIGHING):
        allowed = ', '.join(kind.__name__ for kind in WEIGHING)
        raise ValueError(f'layer must be one of {allowed}, got '
                         f'{type(layer).__name__}')
    if x.ndim != 4 or len(x) != 1:
        raise ValueError(f'x must be [1, H, W, dim], got {tuple(x.shape)}')
    height, width = x.shape[1:3]
    if not queries:
        raise ValueError('queries must be at least one, got none')
    for row, column in queries:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f'queries must lie in {height} x {width} tokens, '
                             f'got {(row, column)}')
    with torch.inference_mode(False), torch.enable_grad(), \
            torch.autocast(x.device.type, enabled=False):
        # What was made in inference mode takes no part in gradients.
        return _maps(_probe(layer), x.clone().float(), queries)


def _probe(layer: nn.Module) -> nn.Module:
    """A copy whose heads come out side by side, instead of mixed."""
    probe = copy.deepcopy(layer).float().eval().requires_grad_(False)
    for part in probe.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    probe.proj = nn.Identity()
    return probe


def _maps(probe: nn.Module, x: Tensor,
          queries: Sequence[Tuple[int, int]]) -> Tensor:
    """See :func:`attention_maps`."""
    height, width = x.shape[1:3]
    values: List[Tensor] = []
    places: List[Tensor] = []

    def cut(_: nn.Module, arguments: Tuple[Tensor, ...],
            out: Tensor) -> Tensor:
        places.append(arguments[0][..., 0])
        values.append(out.detach().requires_grad_())
        return values[-1]

    probe.qkv.register_forward_hook(cut)
    # Windows reorder and pad: numbers instead of tokens tell how.
    numbers = torch.arange(1., height * width + 1, device=x.device)
    probe(numbers.view(1, height, width, 1).expand_as(x).contiguous())
    place = places[0].flatten().long()  # 0 is padding
    once = torch.equal(place[place > 0].sort().values, numbers.long())
    if len(places) > 1 or not once:
        raise ValueError(f'{type(probe).__name__} does not project each '
                         'token once: its weights are not those of tokens')
    heads = probe.num_heads
    out = probe(x)[0].unflatten(-1, (heads, -1)).mean(-1)  # [H, W, heads]
    maps = []
    for row, column in queries:
        grad, = torch.autograd.grad(
            out[row, column].sum(), values[-1], retain_graph=True)
        grad = grad.unflatten(-1, (3, heads, -1))[..., 2, :, :].sum(-1)
        weights = grad.new_zeros(height * width + 1, heads)
        weights[place] = grad.flatten(0, -2)
        maps.append(weights[1:].T.unflatten(-1, (height, width)))
    return torch.stack(maps)
