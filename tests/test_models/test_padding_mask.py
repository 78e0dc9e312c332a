"""Images of several sizes in one batch give what each of them gives alone."""

from typing import Any, List, Sequence, Tuple

import pytest
import torch
from torch import nn

from fma_vision import FMATransformer
from fma_vision.layers import ATTENTION_LAYERS, build_attention
from fma_vision.models.backbones.blocks import fill_with_mean, shrink_mask

SMALL = dict(embed_dims=16, depths=[1, 1, 2], num_heads=[1, 2, 4])
SIZES = [(33, 47), (8, 61), (1, 3), (64, 20)]
FMA = dict(type='FMAttention2D', cell_size=2)
FORMS = [
    dict(),
    dict(attn=dict(FMA, rank=2, pool_queries=True)),
    dict(attn=dict(FMA, num_levels=1)),
    dict(attn=dict(FMA, num_levels=0)),
    *(dict(attn=dict(FMA, summaries=form))
      for form in ('grouped_conv', 'conv', 'hierarchical')),
    dict(attn=dict(FMA, summaries='grouped_conv', max_levels=1)),
    dict(attn=dict(FMA, summaries='hierarchical', pool_queries='learned')),
    dict(attn=dict(FMA, positions='rotary', pool_queries=True)),
    dict(attn=dict(FMA, positions='relative'), position='none'),
    dict(attn='FullAttention'),
    dict(attn='LongShortAttention', patch_size=2),
    dict(position=dict(type='AbsolutePosition', size=(7, 7))),
    dict(position='none', patch_size=3),
]
LAYERS_2D = [
    name for name in ATTENTION_LAYERS
    if name not in ('Fastformer', ) and not name.endswith('1D')
]


def build(**kwargs: Any) -> Tuple[nn.Module, nn.Module]:
    """A backbone with masks and its twin without, equal weights, float64."""
    kwargs = dict(
        dict(attn=FMA, out_indices=(0, 1, 2), drop_path_rate=0.), **kwargs)
    masked = FMATransformer(SMALL, mask_padding=True, **kwargs).double()
    for param in masked.parameters():
        nn.init.normal_(param, std=.2)
    plain = FMATransformer(SMALL, **kwargs).double()
    plain.load_state_dict(masked.state_dict())
    return masked, plain


def pad(
    images: Sequence[torch.Tensor],
    fill: float = float('nan'),
    size: Tuple[int, int] = (66, 70)
) -> torch.Tensor:
    """Images ``[C, H, W]`` in one batch, with the channel of the mask."""
    batch = images[0].new_full((len(images), len(images[0]) + 1, *size), fill)
    batch[:, -1] = 0
    for row, image in zip(batch, images):
        height, width = image.shape[-2:]
        row[:-1, :height, :width] = image
        row[-1, :height, :width] = 1
    return batch


def images_of(sizes: Sequence[Tuple[int, int]]) -> List[torch.Tensor]:
    return [torch.randn(3, *size).double() for size in sizes]


def compare(batch: Sequence[torch.Tensor],
            alone: Sequence[Sequence[torch.Tensor]], **tolerance) -> None:
    """Maps of a batch against those of each image."""
    for i, maps in enumerate(alone):
        for whole, part in zip(batch, maps):
            height, width = part.shape[2:]
            torch.testing.assert_close(whole[i:i + 1, :, :height, :width],
                                       part, **tolerance)
            # The host's global average pooling sees the image alone.
            torch.testing.assert_close(whole[i].mean((1, 2)), part[0].mean(
                (1, 2)), **tolerance)
    assert all(whole.isfinite().all() for whole in batch)


@pytest.mark.parametrize('kwargs', FORMS, ids=str)
def test_each_image_gives_what_it_gives_alone(kwargs: dict) -> None:
    masked, plain = build(**kwargs)
    images = images_of(SIZES)
    with torch.no_grad():
        compare(masked.eval()(pad(images)),
                [plain.eval()(image[None]) for image in images])


def test_at_rounding_in_float32() -> None:
    """On the backend that users get."""
    masked, plain = (model.float().eval() for model in build())
    images = [image.float() for image in images_of(SIZES)]
    with torch.no_grad():
        compare(
            masked(pad(images)), [plain(image[None]) for image in images],
            rtol=1e-4,
            atol=1e-4)


@pytest.mark.parametrize('sizes, padded', [
    ([(37, 53)], (37, 53)),
    ([(37, 53)], (64, 64)),
    ([(20, 20)] * 3, (20, 20)),
    ([(9, 40), (40, 9)], (40, 40)),
])
def test_batches(sizes, padded) -> None:
    """One image, all of one size, without padding and with."""
    masked, plain = build()
    images = images_of(sizes)
    with torch.no_grad():
        compare(masked.eval()(pad(images, size=padded)),
                [plain.eval()(image[None]) for image in images])


@pytest.mark.parametrize(
    'kwargs', [
        dict(),
        dict(with_cp=True),
        dict(attn=dict(FMA, summaries='hierarchical', pool_queries='learned')),
        dict(position=dict(type='AbsolutePosition', size=(7, 7))),
    ],
    ids=str)
def test_gradients(kwargs: dict) -> None:
    """Those of the weights and images are the sums of those alone."""
    masked, plain = build(**kwargs)
    images = images_of(SIZES)
    batch = pad(images).requires_grad_()
    weights = torch.randn(66, 70).double()

    def loss(maps: Sequence[torch.Tensor], size: Tuple[int, int]):
        total = 0
        for i, x in enumerate(maps):
            height, width = (-(-side // (4 * 2**i)) for side in size)
            x = x[..., :height, :width]
            total = total + (x * weights[:height, :width]).sum()
        return total

    maps = masked.train()(batch)
    sum(loss([x[i] for x in maps], size)
        for i, size in enumerate(SIZES)).backward()
    for i, (image, size) in enumerate(zip(images, SIZES)):
        image.requires_grad_()
        loss(plain.train()(image[None]), size).backward()
        row = batch.grad[i, :-1]
        torch.testing.assert_close(row[:, :size[0], :size[1]], image.grad)
        assert row.isfinite().all()
        assert not row[:, size[0]:].any() and not row[..., size[1]:].any()
    for (name, one), other in zip(masked.named_parameters(),
                                  plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize('name', LAYERS_2D)
def test_layers_are_right_or_refused(name: str) -> None:
    layer = ATTENTION_LAYERS[name]
    if not getattr(layer, 'mask_is_border', False):
        with pytest.raises(
                ValueError,
                match=f'got {name}, whose output.*'
                r"allowed: \['FMAttention2D', 'FullAtt"):
            FMATransformer(SMALL, attn=dict(type=name), mask_padding=True)
        return
    layer = build_attention(name, 16, 2).double()
    x = torch.randn(1, 9, 13, 16).double()
    mask = torch.zeros(1, 30, 20, dtype=torch.bool)
    mask[:, :9, :13] = True
    padded = torch.full((1, 30, 20, 16), float('nan')).double()
    padded[:, :9, :13] = x
    torch.testing.assert_close(layer(padded, mask)[:, :9, :13], layer(x))


def test_masks_shrink_as_maps_do() -> None:
    mask = torch.zeros(1, 7, 9, dtype=torch.bool)
    mask[:, :5, :3] = True
    for side in (1, 2, 4, 16):
        small = shrink_mask(mask, side)
        assert small.shape == (1, -(-7 // side), -(-9 // side))
        assert small.sum() == -(-5 // side) * -(-3 // side)
    x = torch.randn(1, 7, 9, 2)
    filled = fill_with_mean(x, mask)
    torch.testing.assert_close(filled[mask], x[mask])
    torch.testing.assert_close(filled.mean((1, 2)), x[:, :5, :3].mean((1, 2)))
    assert not fill_with_mean(x, mask & False).any()


def test_refuses() -> None:
    model = FMATransformer(SMALL, mask_padding=True)
    with pytest.raises(ValueError, match=r'\[B, 4, H, W\].*PaddingMask'):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r'\[B, 3, H, W\] with H, W >= 1, '):
        FMATransformer(SMALL)(torch.zeros(1, 4, 8, 8))
    import timm

    import fma_vision  # noqa: F401
    with pytest.raises(ValueError, match='mask_padding=True is for'):
        timm.create_model('fma_nano', mask_padding=True)


# ------------------------------------------------------------------ hosts
BACKBONE = dict(
    type='fma_vision.FMATransformer',
    arch=dict(SMALL),
    drop_path_rate=0.,
    mask_padding=True)
NORM = dict(mean=[120.] * 3, std=[60.] * 3)


def _model(package: str, cfg: dict) -> nn.Module:
    pytest.importorskip(package)
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope
    with DefaultScope.overwrite_default_scope(package):
        return MODELS.build(ConfigDict(cfg)).eval()


@pytest.fixture
def classifier() -> nn.Module:
    return _model(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            data_preprocessor=dict(
                type='fma_vision.PaddingMask',
                preprocessor=dict(type='ClsDataPreprocessor', **NORM)),
            backbone=BACKBONE,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=5,
                in_channels=64,
                init_cfg=None,
                loss=dict(type='CrossEntropyLoss'))))


@pytest.fixture
def segmentor() -> nn.Module:
    return _model(
        'mmseg',
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(
                type='fma_vision.PaddingMask',
                preprocessor=dict(
                    type='SegDataPreProcessor', size=(72, 64), **NORM)),
            backbone=dict(BACKBONE, out_indices=(0, 1, 2)),
            decode_head=dict(
                type='SegformerHead',
                in_channels=[16, 32, 64],
                in_index=[0, 1, 2],
                channels=8,
                num_classes=5,
                norm_cfg=dict(type='BN')),
            test_cfg=dict(mode='whole')))


def _sample(kind: type, size: Tuple[int, int], **meta: Any) -> Any:
    return kind(metainfo=dict(dict(img_shape=size, ori_shape=size), **meta))


def _pixels(size: Tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def test_mmpretrain(classifier) -> None:
    """Scores, and the loss of a training step, are those of each alone."""
    from mmpretrain.structures import DataSample
    sizes = [(33, 47), (50, 21), (64, 64)]
    images = [_pixels(size) for size in sizes]

    def data(chosen: Sequence[int]) -> dict:
        samples = [
            _sample(DataSample, sizes[i]).set_gt_label(i) for i in chosen
        ]
        return dict(inputs=[images[i] for i in chosen], data_samples=samples)

    with torch.no_grad():
        together = classifier.test_step(data(range(3)))
        losses = []
        for i, result in enumerate(together):
            alone, = classifier.test_step(data([i]))
            torch.testing.assert_close(
                result.pred_score, alone.pred_score, rtol=1e-4, atol=1e-5)
            losses.append(_loss(classifier, data([i])))
        loss = _loss(classifier, data(range(3)))
    torch.testing.assert_close(loss, sum(losses) / 3, rtol=1e-4, atol=1e-5)
    # As a tensor, and with the size that a pipeline has padded to.
    filled = torch.full((2, 3, 64, 64), 7, dtype=torch.uint8)
    filled[0, :, :33, :47] = images[0]
    filled[1] = images[2]
    samples = [
        _sample(DataSample, size, pad_shape=(64, 64, 3))
        for size in (sizes[0], sizes[2])
    ]
    with torch.no_grad():
        results = classifier.test_step(
            dict(inputs=filled, data_samples=samples))
    for result, wanted in zip(results, together[::2]):
        torch.testing.assert_close(
            result.pred_score, wanted.pred_score, rtol=1e-4, atol=1e-5)


def _loss(model: nn.Module, data: dict) -> torch.Tensor:
    """What a training step minimises, without dropout."""
    data = model.data_preprocessor(data, True)
    return model(**data, mode='loss')['loss']


def test_mmsegmentation(segmentor) -> None:
    """Maps are those of each alone, in training and in testing."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sizes = [(33, 47), (50, 21), (72, 64)]
    images = [_pixels(size) for size in sizes]

    def data(chosen: Sequence[int]) -> dict:
        samples = [_sample(SegDataSample, sizes[i]) for i in chosen]
        for sample, i in zip(samples, chosen):
            sample.gt_sem_seg = PixelData(
                data=torch.randint(0, 5, (1, *sizes[i])))
        return dict(inputs=[images[i] for i in chosen], data_samples=samples)

    def maps(chosen: Sequence[int], training: bool) -> List[torch.Tensor]:
        batch = segmentor.data_preprocessor(data(chosen), training)
        assert batch['inputs'].shape[1:] == (4, 72,
                                             64) or not training, 'padded'
        return segmentor.extract_feat(batch['inputs'])

    with torch.no_grad():
        alone = [maps([i], False) for i in range(3)]
        assert [x[0].shape[2:] for x in alone] == [(9, 12), (13, 6), (18, 16)]
        for training in (False, True):
            compare(maps(range(3), training), alone, rtol=1e-4, atol=1e-4)
        results = segmentor.test_step(data(range(3)))
    for result, size in zip(results, sizes):
        assert result.pred_sem_seg.shape == size
        assert result.gt_sem_seg.shape == size
    optimizer = build_optim_wrapper(segmentor,
                                    dict(optimizer=dict(type='SGD', lr=.1)))
    logs = segmentor.train().train_step(data(range(3)), optimizer)
    assert logs['loss'].isfinite()
    # Crops keep the channel; some of them are all padding.
    segmentor.eval().test_cfg.update(
        mode='slide', crop_size=(24, 24), stride=(16, 16))
    with torch.no_grad():
        results = segmentor.test_step(data(range(3)))
    assert all(x.seg_logits.data.isfinite().all() for x in results)


def test_mixing_is_refused(classifier) -> None:
    from fma_vision.models import PaddingMask
    mixed = dict(augments=dict(type='Mixup', alpha=.8))
    for kwargs in (dict(batch_augments=mixed),
                   dict(
                       preprocessor=dict(
                           type='ClsDataPreprocessor', batch_augments=mixed))):
        with pytest.raises(ValueError, match='cannot be mixed, got batch_aug'):
            PaddingMask(**{
                'preprocessor': dict(type='ClsDataPreprocessor'),
                **kwargs
            })


def test_tools_measure_the_model_without_its_mask(tmp_path) -> None:
    """One image has no padding; a wrapped preprocessor is found."""
    pytest.importorskip('mmpretrain')
    from fma_vision.engine.build import (load_model_config, measure,
                                         preprocessor_settings)
    config = tmp_path / 'masked.py'
    config.write_text(f'''
default_scope = 'mmpretrain'
data_preprocessor = dict(
    type='fma_vision.PaddingMask',
    preprocessor=dict(type='ClsDataPreprocessor', to_rgb=True))
model = dict(
    type='ImageClassifier', backbone={BACKBONE},
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=64))
''')
    cfg = load_model_config(str(config))
    assert preprocessor_settings(cfg)['to_rgb']
    found = measure(cfg, (32, 32))
    assert found['model'].macs > found['backbone'].macs > 0
