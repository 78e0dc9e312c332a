"""Hierarchical vision transformer with Fast Multipole Attention."""

from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import trunc_normal_
from torch.nn.modules.batchnorm import _BatchNorm

from ...layers import ATTENTION_LAYERS
from ...layers.checks import check_rates, check_type, typed
from ...layers.common import undecayed_parameters
from ...registry import MODELS, BaseModule
from .blocks import PatchEmbed, Stage, fill_with_mean, shrink_mask

_Attention = Union[str, type, dict]


@MODELS.register_module()
class FMATransformer(BaseModule):
    """Hierarchical backbone with a choice of attention layers.

    Widths and depths are Swin's (arXiv 2103.14030), so that an attention
    layer is compared in a known frame; by default positions come from a
    depthwise convolution in each block, so that any resolution works. Tokens
    stay channels last inside.

    Args:
        arch (str | dict): ``'nano'``, ``'tiny'``, ``'small'``, ``'base'`` or
            a dict with ``embed_dims`` (of the first stage, doubled by each
            further one, or one per stage), ``depths`` and ``num_heads``.
        in_channels (int): Channels of the image. Defaults to 3.
        patch_size (int): Side of a patch in pixels. Defaults to 4.
        attn (dict | sequence[dict]): Attention layer, for all stages or one
            per stage; see :func:`~fma_vision.layers.build_attention`.
            ``dict(type='WindowAttention', window_size=7)`` is Swin's.
        position (str | dict, optional): ``'ConditionalPosition'``, a
            convolution in each block;
            ``dict(type='AbsolutePosition', size=(56, 56))``, a learned table
            that is added once to the embedded patches, here those of 224 x
            224 pixels (other sizes are interpolated); ``'none'`` or None,
            also where the attention brings positions:
            ``attn=dict(type='FMAttention2D', positions='rotary')`` or
            ``'relative'``.
        mlp_ratio (float): Hidden width of the MLPs. Defaults to 4.
        qkv_bias (bool): Bias in the query, key, value projections.
        drop_rate (float): Dropout in MLPs and after attention.
        drop_path_rate (float): Stochastic depth of the last block, rising
            linearly from 0. Defaults to 0.1.
        out_indices (sequence[int], optional): Stages to return, each with
            its own norm; negative counts from the end. None is the last
            stage, (3,) for four. Stages past the last one are not built.
        frozen_stages (int): Freeze the patch embedding and stages up to this
            index; -1 freezes nothing.
        norm_eval (bool): Keep batch norms, which a custom attention layer
            may bring, in eval mode.
        with_cp (bool): Trade compute for memory in training.
        mask_padding (bool): Images have one channel more, the last, which is
            1 where an image is and 0 where a batch was padded below it or to
            its right (:class:`~fma_vision.models.PaddingMask` adds it). Each
            image then gives, where it is, what it gives alone, to rounding;
            the padding of its maps holds the mean of the rest, so that an
            average over a whole map is that of the image, too. Needs
            attention layers that have ``mask_is_border``. Defaults to False.
        init_cfg (dict, optional): As everywhere in OpenMMLab, such as
            ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        ValueError: If an argument is out of range.
    """

    arch_zoo: Dict[str, Dict[str, Any]] = {
        'nano': {
            'embed_dims': 32,
            'depths': [2, 2, 6, 2],
            'num_heads': [1, 2, 4, 8]
        },
        'tiny': {
            'embed_dims': 96,
            'depths': [2, 2, 6, 2],
            'num_heads': [3, 6, 12, 24]
        },
        'small': {
            'embed_dims': 96,
            'depths': [2, 2, 18, 2],
            'num_heads': [3, 6, 12, 24]
        },
        'base': {
            'embed_dims': 128,
            'depths': [2, 2, 18, 2],
            'num_heads': [4, 8, 16, 32]
        },
    }

    # Name parts of parameters that must not decay, for `custom_keys`.
    no_decay_keys = ('summaries.delta', 'relative_position_bias_table',
                     'absolute_pos_embed', 'field_weights')

    @typed
    def __init__(
            self,
            arch: Union[str, dict] = 'tiny',
            in_channels: int = 3,
            patch_size: int = 4,
            attn: Union[_Attention, Sequence[_Attention]] = dict(
                type='FMAttention2D', cell_size=4),
            position: Optional[Union[str, dict]] = 'ConditionalPosition',
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.1,
            out_indices: Optional[Union[int, Sequence[int]]] = None,
            frozen_stages: int = -1,
            norm_eval: bool = False,
            with_cp: bool = False,
            mask_padding: bool = False,
            init_cfg: Optional[Union[dict, Sequence[dict]]] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = self._settings(arch)
        self.depths: List[int] = settings['depths']
        self.num_heads: List[int] = settings['num_heads']
        self.embed_dims: List[int] = settings['embed_dims']
        self.num_stages = len(self.depths)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_indices = self._indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.mask_padding = mask_padding
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if patch_size < 1 or in_channels < 1:
            raise ValueError('patch_size and in_channels must be at least 1, '
                             f'got {patch_size} and {in_channels}')
        if not -1 <= frozen_stages < self.num_stages:
            raise ValueError(f'frozen_stages must be in [-1, '
                             f'{self.num_stages - 1}], got {frozen_stages}')
        attns = [attn] * self.num_stages if isinstance(attn,
                                                       (dict, str,
                                                        type)) else list(attn)
        if len(attns) != self.num_stages:
            raise ValueError(f'attn must be one config or one per stage '
                             f'({self.num_stages}), got {len(attns)}')

        self.patch_embed = PatchEmbed(in_channels, self.embed_dims[0],
                                      patch_size, position)
        last = max(sum(self.depths) - 1, 1)
        rates = [drop_path_rate * i / last for i in range(sum(self.depths))]
        self.stages = nn.ModuleList()
        for i in range(max(self.out_indices) + 1):
            start = sum(self.depths[:i])
            self.stages.append(
                Stage(
                    in_dim=self.embed_dims[max(i - 1, 0)],
                    dim=self.embed_dims[i],
                    downsample=i > 0,
                    drop_paths=rates[start:start + self.depths[i]],
                    with_cp=with_cp,
                    num_heads=self.num_heads[i],
                    attn=attns[i],
                    position=position,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop=drop_rate))
        if mask_padding:
            self._check_mask_is_border()
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(self.embed_dims[i]))
        self.apply(_init_layer)
        self._freeze()

    @classmethod
    def _settings(cls, arch: Union[str, dict]) -> Dict[str, List[int]]:
        """Check ``arch`` and give one value per stage for each key."""
        keys = {'embed_dims', 'depths', 'num_heads'}
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f'arch={arch!r} is unknown; allowed: '
                                 f'{sorted(cls.arch_zoo)} or a dict with '
                                 f'keys {sorted(keys)}')
            arch = cls.arch_zoo[arch]
        elif not isinstance(arch, dict) or set(arch) != keys:
            raise ValueError('arch must be a name or a dict with exactly the '
                             f'keys {sorted(keys)}, got {arch!r}')
        kinds = dict.fromkeys(keys, Sequence[int])
        kinds['embed_dims'] = Union[int, Sequence[int]]
        depths, heads, dims = (
            check_type(f'arch: {key}', arch[key], kinds[key])
            for key in ('depths', 'num_heads', 'embed_dims'))
        if isinstance(dims, int):
            dims = [dims * 2**i for i in range(len(depths))]
        depths, heads, dims = list(depths), list(heads), list(dims)
        if not len(depths) == len(heads) == len(dims) or not depths:
            raise ValueError('arch needs as many depths as num_heads and '
                             f'embed_dims, got {arch!r}')
        if min(depths) < 1:
            raise ValueError(f'depths must be at least 1, got {depths}')
        return dict(depths=depths, num_heads=heads, embed_dims=dims)

    def _indices(self, out_indices: Optional[Sequence[int]]) -> List[int]:
        """Check ``out_indices`` and make them non-negative."""
        if out_indices is None:
            return [self.num_stages - 1]
        if isinstance(out_indices, int):
            out_indices = [out_indices]
        indices = [i + self.num_stages if i < 0 else i for i in out_indices]
        if (not indices or sorted(set(indices)) != indices
                or not 0 <= indices[0] <= indices[-1] < self.num_stages):
            raise ValueError('out_indices must be increasing stage indices '
                             f'in [0, {self.num_stages - 1}], got '
                             f'{tuple(out_indices)}')
        return indices

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """Compute feature maps.

        Args:
            x (Tensor): ``[B, in_channels, H, W]``, any H and W >= 1; with
                ``mask_padding`` ``[B, in_channels + 1, H, W]``.

        Returns:
            tuple[Tensor]: One ``[B, C_i, H_i, W_i]`` per index in
            ``out_indices``, with sides ceil(H / patch_size / 2**i).

        Raises:
            ValueError: If the input is not such an image batch.
        """
        x = check_images(x, self.in_channels, self.mask_padding)
        mask = None
        if self.mask_padding:
            mask = x[:, -1] > .5  # bool [B, H, W]
            x = x[:, :-1].masked_fill(~mask[:, None], 0)
            mask = shrink_mask(mask, self.patch_size)
        x = self.patch_embed(x, mask)
        outs = []
        for i, stage in enumerate(self.stages):
            if mask is not None and i > 0:
                mask = shrink_mask(mask, 2)
            x = stage(x, mask)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                if mask is not None:
                    out = fill_with_mean(out, mask)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _check_mask_is_border(self) -> None:
        """Refuse attention that knows where the padded map ends."""
        allowed = [
            name for name, layer in ATTENTION_LAYERS.items()
            if getattr(layer, 'mask_is_border', False)
        ]
        for stage in self.stages:
            layer = stage.blocks[0].attn
            if not getattr(layer, 'mask_is_border', False):
                raise ValueError(
                    'mask_padding=True needs an attn type with '
                    f'mask_is_border, got {type(layer).__name__}, whose '
                    'output depends on the size of the padded map; allowed: '
                    f'{sorted(allowed)}')

    def train(self, mode: bool = True) -> 'FMATransformer':
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        """Stop gradients, dropout and stochastic depth in frozen stages."""
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.stages[:self.frozen_stages + 1]]
        frozen += [
            getattr(self, f'norm{i}') for i in self.out_indices
            if i <= self.frozen_stages
        ]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self,
                        param_name: str,
                        prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rates.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of this backbone's parameters.

        Returns:
            tuple[int, int]: Depth (0 for the stem, the last for whatever
            follows the blocks) and number of depths.
        """
        num_layers = sum(self.depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        parts = param_name[len(prefix):].split('.')
        if parts[0] == 'patch_embed':
            return 0, num_layers
        if parts[0] == 'stages':
            before = sum(self.depths[:int(parts[1])])
            if parts[2] == 'downsample':  # one with the block before it
                return before, num_layers
            return before + int(parts[3]) + 1, num_layers
        return num_layers - 1, num_layers

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters that must not decay."""
        return undecayed_parameters(self)


def check_images(x: torch.Tensor, channels: int, masked: bool) -> torch.Tensor:
    """Return ``x`` if it is ``[B, channels, H, W]`` with H, W >= 1.

    Raises:
        ValueError: If it is not; ``masked`` images have a channel more.
    """
    channels = channels + masked
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        more = (', the last channel telling images from padding '
                "(data_preprocessor=dict(type='fma_vision.PaddingMask', "
                '...) adds it)') if masked else ''
        raise ValueError(f'x must be [B, {channels}, H, W] with '
                         f'H, W >= 1{more}, got {tuple(x.shape)}')
    return x


def _init_layer(module: nn.Module) -> None:
    """Truncated normal weights, zero biases, unit norms."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
