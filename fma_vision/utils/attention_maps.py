"""Where a token looks: the weights of an attention layer, as maps."""

import copy
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..layers.attention import FMAttention2D
from ..layers.baselines.base import ProjectedAttention
from ..models.backbones.blocks import Block

Layers = Dict[str, nn.Module]


def map_layers(model: nn.Module) -> Layers:
    """The attention layers of a backbone that attend from token to token.

    Args:
        model: Any module with an :class:`~fma_vision.models.FMATransformer`
            inside.

    Returns:
        dict[str, Module]: By name. Layers that attend on several scales
        (MANO) are left out.
    """
    return {
        f'{name}.attn': block.attn
        for name, block in model.named_modules() if isinstance(block, Block)
        and isinstance(block.attn, (FMAttention2D, ProjectedAttention))
    }


@contextmanager
def record_inputs(layers: Layers) -> Iterator[Dict[str, Tensor]]:
    """Keep what layers are given while their model runs.

    Args:
        layers: From :func:`map_layers`.

    Yields:
        dict[str, Tensor]: By the layer's name, the last ``[B, H, W, dim]``.
    """
    found: Dict[str, Tensor] = {}

    def keep(name: str) -> Any:

        def hook(_: nn.Module, arguments: Tuple[Tensor, ...]) -> None:
            found[name] = arguments[0].detach()

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
        layer: One of :func:`map_layers`.
        x: ``[1, H, W, dim]``, what the layer is given.
        queries: Rows and columns of tokens.

    Returns:
        Tensor: float32 ``[queries, heads, H, W]``. Of a layer that normalises
        its weights and learns no summaries, each map sums to 1; of learned
        summaries these are means over the channels.

    Raises:
        ValueError: The layer does not project each token once, ``x`` is no
            such batch of one, or a query is outside.
    """
    if x.ndim != 4 or len(x) != 1:
        raise ValueError(f'x must be [1, H, W, dim], got {tuple(x.shape)}')
    height, width = x.shape[1:3]
    for row, column in queries:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f'queries must lie in {height} x {width} tokens, '
                             f'got {(row, column)}')
    probe = copy.deepcopy(layer).float().eval().requires_grad_(False)
    # Heads side by side, instead of mixed.
    probe.proj.weight.copy_(torch.eye(layer.dim))
    if probe.proj.bias is not None:
        probe.proj.bias.zero_()
    values: List[Tensor] = []
    places: List[Tensor] = []

    def cut(_: nn.Module, arguments: Tuple[Tensor, ...],
            out: Tensor) -> Tensor:
        places.append(arguments[0][..., 0])
        values.append(out.detach().requires_grad_())
        return values[-1]

    probe.qkv.register_forward_hook(cut)
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        # Windows reorder and pad: numbers instead of tokens tell how.
        numbers = torch.arange(1., height * width + 1, device=x.device)
        probe(numbers.view(1, height, width, 1).expand_as(x).contiguous())
        place = places[0].flatten().long()  # 0 is padding
        once = torch.equal(place[place > 0].sort().values, numbers.long())
        if len(places) > 1 or not once:
            raise ValueError(f'{type(layer).__name__} does not project each '
                             'token once: its weights are not those of tokens')
        out = probe(x.float())[0].unflatten(-1, (layer.num_heads, -1)).mean(-1)
        maps = []
        for row, column in queries:
            grad, = torch.autograd.grad(
                out[row, column].sum(), values[-1], retain_graph=True)
            grad = grad.unflatten(-1, (3, layer.num_heads, -1))[..., 2, :, :]
            weights = grad.new_zeros(height * width + 1, layer.num_heads)
            weights[place] = grad.sum(-1).flatten(0, -2)
            maps.append(weights[1:].T.unflatten(-1, (height, width)))
    return torch.stack(maps)
