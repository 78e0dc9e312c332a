"""Batches of images of different sizes, with what is image and what is not."""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor

from ..registry import MODELS


@MODELS.register_module()
class PaddingMask(BaseDataPreprocessor):
    """The host's preprocessor, and a channel that tells images from padding.

    The channel comes last in the batch: 1 where an image is, 0 where it was
    padded. As a part of the input it reaches the backbone through whatever a
    model does in between, crops of sliding windows included; a backbone with
    ``mask_padding=True`` takes it off again.

    An image is as large as its tensor; where ``pad_shape`` of its data
    sample is that size, because a pipeline padded it, as ``img_shape``. In
    testing, too, images of one batch may have different sizes here, and
    ``img_padding_size`` of the data samples, with which mmsegmentation cuts
    predictions, is what was padded in all.

    Args:
        preprocessor (dict): Config of the host's preprocessor, which must pad
            at the bottom and to the right, as those of mmsegmentation and
            mmpretrain do.
        batch_augments (dict, optional): mmpretrain hands its ``train_cfg``
            here; mixed images have no size of their own.

    Raises:
        ValueError: If there are ``batch_augments``, here or there.
    """

    def __init__(self,
                 preprocessor: dict,
                 batch_augments: Optional[dict] = None) -> None:
        super().__init__()
        mixing = batch_augments or preprocessor.get('batch_augments')
        if mixing:
            raise ValueError('PaddingMask: images of different sizes cannot '
                             f'be mixed, got batch_augments={mixing} (of '
                             'model.train_cfg?); allowed is None')
        self.preprocessor = MODELS.build(preprocessor)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Pad and normalise a batch.

        Args:
            data (dict): ``inputs``, a list of ``[C, H, W]`` or a tensor
                ``[B, C, H, W]``, and ``data_samples``.
            training (bool): Whether the model is trained.

        Returns:
            dict: What the host's preprocessor returns, with ``inputs`` of
            ``[B, C + 1, H, W]``.
        """
        images, samples = data['inputs'], data.get('data_samples')
        sizes = [
            _size(image, sample)
            for image, sample in zip(images, samples or [None] * len(images))
        ]
        if not training and not torch.is_tensor(images):
            # mmsegmentation tests images of one size only.
            data = {**data, 'inputs': _pad(images)}
        data = self.preprocessor(data, training)
        inputs = data['inputs']
        height, width = inputs.shape[2:]
        mask = inputs.new_zeros(len(inputs), 1, height, width)
        for row, (h, w) in zip(mask, sizes):
            row[:, :h, :w] = 1
        if not training:
            for sample, (h, w) in zip(samples or (), sizes):
                sample.set_metainfo(
                    dict(
                        img_padding_size=(0, width - w, 0, height - h),
                        pad_shape=(height, width)))
        return {**data, 'inputs': torch.cat([inputs, mask], 1)}


def _size(image: torch.Tensor, sample: Any) -> Tuple[int, int]:
    """Height and width of an image ``[C, H, W]`` without its padding."""
    size = tuple(image.shape[-2:])
    meta = getattr(sample, 'metainfo', {})
    if tuple(meta.get('pad_shape') or ())[:2] != size:
        return size
    return tuple(meta.get('img_shape', size))[:2]


def _pad(images: List[torch.Tensor]) -> List[torch.Tensor]:
    """Make all images ``[C, H, W]`` as large as the largest sides."""
    height, width = (max(x.shape[axis] for x in images) for axis in (-2, -1))
    return [
        F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
        for x in images
    ]
