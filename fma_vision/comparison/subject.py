"""One layer on one grid, ready to be called."""

import functools
from dataclasses import dataclass
from typing import Any, Callable, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..utils.precision import autocast
from .specs import LayerSpec

MODES = ('inference', 'training')


@dataclass(frozen=True)
class Setting:
    """What all layers of a comparison share.

    Attributes:
        dim: Channels.
        heads: Heads.
        causal: Compare the causal forms.
        dtype: Of products; float16 and bfloat16 run under autocast.
        device: Where to run.
        batch: Images or texts at a time.
        seed: Of weights and inputs.
    """
    dim: int
    heads: int
    causal: bool = False
    dtype: str = 'float32'
    device: str = 'cpu'
    batch: int = 1
    seed: int = 0


def shape_text(shape: Sequence[int]) -> str:
    """A grid as ``56x56``, or as ``4096``."""
    return 'x'.join(map(str, shape))


def build_layer(spec: LayerSpec, grid: Tuple[int, ...],
                setting: Setting) -> nn.Module:
    """A layer in evaluation mode, none of whose weights are all zero.

    Those that start at zero would hide mistakes in what they weigh.

    Args:
        spec: The layer.
        grid: Tokens along each axis.
        setting: Its size, device and seed.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    torch.manual_seed(setting.seed)
    layer = spec.build(grid, setting.dim, setting.heads, setting.causal)
    for parameter in layer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=.1)
    layer = layer.to(setting.device)
    layer.eval()
    return layer


def random_tokens(grid: Tuple[int, ...], setting: Setting) -> Tensor:
    """Tokens ``[batch, *grid, dim]``, the same at every call."""
    generator = torch.Generator().manual_seed(setting.seed)
    x = torch.randn(setting.batch, *grid, setting.dim, generator=generator)
    return x.to(setting.device)


class Subject:
    """A layer with its input; calling it is what gets measured.

    Args:
        spec: The layer.
        grid: Tokens along each axis.
        setting: What all layers share.
        mode: ``'inference'`` is a forward pass, ``'training'`` one with the
            gradients of the input and of all weights.
    """

    def __init__(self, spec: LayerSpec, grid: Tuple[int, ...],
                 setting: Setting, mode: str) -> None:
        self.setting = setting
        self.layer = build_layer(spec, grid, setting)
        self.x = random_tokens(grid, setting)
        self._run: Callable[[], List[Tensor]] = self._forward
        if mode == 'training':
            self.layer.train()
            self.x.requires_grad_()
            leaves = [p for p in self.layer.parameters() if p.requires_grad]
            self._run = functools.partial(self._train, [self.x, *leaves])

    def _forward(self) -> List[Tensor]:
        with torch.no_grad(), autocast(self.setting.device,
                                       self.setting.dtype):
            return [self.layer(self.x)]

    def _train(self, leaves: List[Tensor]) -> List[Tensor]:
        with autocast(self.setting.device, self.setting.dtype):
            out = self.layer(self.x)
        # A gradient with some of every channel, yet free to make.
        grad = self.x.detach().to(out.dtype)
        found = torch.autograd.grad(out, leaves, grad, allow_unused=True)
        return [out.detach(), *(g for g in found if g is not None)]

    def __call__(self) -> List[Any]:
        """One pass: the output, and in training the gradients."""
        return self._run()

    def complaint(self, tensors: List[Tensor]) -> str:
        """What is wrong with a pass's result; empty if nothing is."""
        if tensors[0].shape != self.x.shape:
            return (f'output is {list(tensors[0].shape)} instead of '
                    f'{list(self.x.shape)}')
        if not all(torch.isfinite(t).all() for t in tensors):
            return 'outputs or gradients are not finite'
        return ''
