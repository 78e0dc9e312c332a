"""Position encodings for feature maps and sequences of any size."""

from typing import Any, Callable, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import resample_abs_pos_embed_nhwc, trunc_normal_

from fma_kernels.autograd import CoreOp

from .checks import typed
from .depthwise import DepthwiseConv2d


def check_rotary(head_dim: int, base: float, ndim: int = 1) -> None:
    """Check what :func:`rotate` needs to know beforehand.

    Raises:
        ValueError: If ``head_dim`` does not split into pairs for each of
            ``ndim`` axes, or ``base`` is not positive.
    """
    if head_dim % (2 * ndim):
        need = 'even' if ndim == 1 else f'a multiple of {2 * ndim}'
        raise ValueError('rotary positions turn pairs of channels: head_dim '
                         f'must be {need}, got {head_dim}')
    if not base > 0:
        raise ValueError(f'rotary_base must be positive, got {base}')


def rotate(x: torch.Tensor,
           positions: Union[torch.Tensor, Sequence[torch.Tensor]],
           base: float = 10000.) -> torch.Tensor:
    """Rotary position encoding (arXiv 2104.09864), by halves.

    Channel i turns with channel i + head_dim / 2 (the convention of GPT-NeoX
    and Llama, not that of neighbouring channels) by the angle
    ``position * base**(-2 i / head_dim)``, so that the product of a rotated
    query and a rotated key depends on the difference of positions alone.

    With positions along d axes, each axis turns its share of the pairs, the
    first axis the first, at the speeds of a head with head_dim / d channels:
    the axial form of arXiv 2403.13298.

    Args:
        x (Tensor): ``[..., n, heads, head_dim]``, floating point.
        positions (Tensor | sequence[Tensor]): ``[n]``, or what broadcasts to
            ``x.shape[:-2]``; fractions are allowed. One for each axis, if
            there are several.
        base (float): Positive; a larger base turns slower.

    Returns:
        Tensor: Like ``x``, in its dtype.

    Raises:
        ValueError: If ``head_dim`` does not split into pairs for each axis,
            or ``base`` is not positive.
    """
    # Turned in float32 or wider, rounded once.
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (
        t.to(dtype).unsqueeze(-2)
        for t in rotary_table(positions, x.shape[-1], base))
    # A trace with a Function in it cannot be saved.
    turn = _turn_of() if torch.jit.is_tracing() else _Turn.apply
    return turn(x.to(dtype), cos, sin).to(x.dtype)


def rotary_table(positions: Union[torch.Tensor, Sequence[torch.Tensor]],
                 head_dim: int,
                 base: float = 10000.) -> Tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles by which :func:`rotate` turns.

    Args:
        positions, base: As for :func:`rotate`.
        head_dim (int): Channels of a head.

    Returns:
        tuple[Tensor, Tensor]: ``[..., head_dim / 2]``, in float64 where the
        device has it.

    Raises:
        ValueError: As :func:`rotate`.
    """
    axes = [positions] if torch.is_tensor(positions) else list(positions)
    check_rotary(head_dim, base, len(axes))
    share = head_dim // len(axes)  # channels of an axis
    # Around position 1e6, float32 angles would be 0.06 apart.
    device = axes[0].device
    wide = angle_dtype(device)
    exponents = torch.arange(0, share, 2, dtype=wide, device=device)
    speed = base**(-exponents / share)
    angles = [at.to(wide)[..., None] * speed for at in axes]
    return (_side_by_side([angle.cos() for angle in angles]),
            _side_by_side([angle.sin() for angle in angles]))


def _side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join ``[..., C]`` along the channels; the other axes broadcast."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(torch.broadcast_tensors(*parts), dim=-1)


def _turn(x: torch.Tensor, cos: torch.Tensor,
          sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of channels, with one tensor written.

    The plain formula writes three, and on a CPU that costs more than the
    arithmetic.

    Args:
        x: ``[..., heads, head_dim]``.
        cos, sin: ``[..., 1, head_dim / 2]``.
    """
    half = x.shape[-1] // 2
    turned = x * torch.cat((cos, cos), dim=-1)
    turned[..., :half].addcmul_(x[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin)
    return turned


def _plain_turn(x: torch.Tensor, cos: torch.Tensor,
                sin: torch.Tensor) -> torch.Tensor:
    """The plain formula: ONNX has no parts of a tensor to write to."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin),
                     dim=-1)


# A compiler that sees through it works out the tables anew, in float64, for
# every head of every token.
_opaque_turn = CoreOp('turn', '(Tensor x, Tensor cos, Tensor sin) -> Tensor',
                      lambda *args: _turn(*args).contiguous(),
                      lambda x, *_: x.new_empty(x.shape)).register()


def _turn_of() -> Callable:
    """What to call where somebody looks into it."""
    if torch.onnx.is_in_onnx_export():
        return _plain_turn
    looked = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return _opaque_turn if looked else _turn


class _Turn(torch.autograd.Function):
    """:func:`_turn` with gradients of the first argument."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, cos: torch.Tensor,
                sin: torch.Tensor) -> torch.Tensor:
        return _turn_of()(x, cos, sin)

    @staticmethod
    def setup_context(ctx, inputs: Tuple[torch.Tensor, ...],
                      output: torch.Tensor) -> None:
        _, cos, sin = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        cos, sin = ctx.saved_tensors
        return _Turn.apply(grad, cos, -sin), None, None


def angle_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it; MPS has not."""
    return torch.float32 if device.type == 'mps' else torch.float64


class ConditionalPosition(nn.Module):
    """Position from a residual depthwise convolution (arXiv 2102.10882).

    The zero border of the convolution tells tokens where they are, the taps
    tell them their neighbours' offsets, so no table limits the resolution.

    Args:
        dim (int): Channels.
        kernel_size (int): Odd side of the kernel. Defaults to 3.
    """

    @typed
    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError('kernel_size must be odd and positive, got '
                             f'{kernel_size}')
        self.conv = DepthwiseConv2d(dim, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, H, W, dim]`` to the same shape."""
        # The permuted view is channels-last memory: no copy either way.
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AbsolutePosition(nn.Module):
    """A learned vector for each place of a map, as in ViT and Swin.

    Added once, after the patches are embedded. On a map of another size the
    table is interpolated (bicubic, smoothed where it shrinks, in float32),
    and so it is when the weights of a table of another size are loaded.

    Args:
        dim (int): Channels.
        size (int | tuple[int, int]): Height and width of the map that the
            table is for, in tokens: image size over patch size.

    Raises:
        ValueError: If ``size`` is not positive.
    """

    # In the stem of a backbone, not in each block.
    in_stem = True

    @typed
    def __init__(self, dim: int, size: Union[int, Tuple[int, int]]) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else size
        if min(sides) < 1:
            raise ValueError('size must be a positive int or (height, width) '
                             f'of these, got {size!r}')
        # The name that hosts spare from weight decay for Swin.
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, *sides, dim))
        trunc_normal_(self.absolute_pos_embed, std=.02)

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters that should not decay."""
        return {'absolute_pos_embed'}

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Map ``[B, H, W, dim]`` to the same shape.

        Args:
            x (Tensor): The map.
            key_mask (Tensor, optional): bool ``[B, H, W]``, True = real: the
                table is stretched over the real part of each map, which
                begins at its first token.
        """
        if key_mask is None:
            return x + self._table(*x.shape[1:3])
        rows, columns = key_mask.any(2).sum(1), key_mask.any(1).sum(1)
        table = x.new_zeros(x.shape)
        for i, (height,
                width) in enumerate(zip(rows.tolist(), columns.tolist())):
            if height:
                table[i, :height, :width] = self._table(height, width)[0]
        return x + table

    def _table(self, height: int, width: int) -> torch.Tensor:
        """The table ``[1, H, W, dim]`` of another size."""
        return resample_abs_pos_embed_nhwc(self.absolute_pos_embed,
                                           [height, width])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any,
                              **kwargs: Any) -> None:
        own = self.absolute_pos_embed.shape
        resize_loaded(
            state_dict, prefix + 'absolute_pos_embed', own,
            lambda table: resample_abs_pos_embed_nhwc(table, list(own[1:3]))
            if table.ndim == 4 and len(table) == 1 else table)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def resize_loaded(state_dict: dict, name: str, shape: Sequence[int],
                  resize: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Resize a table that is about to be loaded, where it has another shape.

    Args:
        state_dict (dict): What a ``_load_from_state_dict`` may write to.
        name (str): Of the table.
        shape (sequence[int]): That the module needs.
        resize (callable): Returns the table in that shape, or as it is if it
            is no such table, for PyTorch to refuse.
    """
    table = state_dict.get(name)
    if torch.is_tensor(table) and table.shape != shape:
        with torch.no_grad():
            # ``load_state_dict(assign=True)`` keeps the dtype it finds.
            state_dict[name] = resize(table).to(table.dtype)


POSITIONS = {
    'AbsolutePosition': AbsolutePosition,
    'ConditionalPosition': ConditionalPosition,
    'none': nn.Identity,
}


def build_position(cfg: Optional[Union[str, dict]],
                   dim: int,
                   in_stem: Optional[bool] = None) -> nn.Module:
    """Build a position encoding for maps ``[B, H, W, dim]``.

    Args:
        cfg (str | dict, optional): ``'ConditionalPosition'``, ``'none'`` or
            a dict with ``type`` (``'AbsolutePosition'``, which needs a
            ``size``, or one of these) and the arguments. None means
            ``'none'``.
        dim (int): Channels.
        in_stem (bool, optional): Where in a backbone it is built for; an
            encoding that belongs to the other place gives an identity. None
            builds it in any case.

    Raises:
        ValueError: If the type is unknown.
    """
    cfg = dict(type=cfg or 'none') if not isinstance(cfg, dict) else dict(cfg)
    name = cfg.pop('type', None)
    key = name[len('fma_vision.'):] if isinstance(
        name, str) and name.startswith('fma_vision.') else name
    if key not in POSITIONS:
        raise ValueError(f'position type {name!r} is unknown; allowed: '
                         f'{sorted(POSITIONS)}')
    cls = POSITIONS[key]
    if in_stem not in (None, getattr(cls, 'in_stem', False)):
        return nn.Identity()
    return cls(dim, **cfg)
