"""Plug-in proof: configs as the host packages ship them, with our backbone.

Each test takes an installed config, swaps the backbone and the channels its
head expects, makes one training step with the config's own optimiser
settings, and one prediction.
"""

import importlib
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch

import fma_vision

mmengine = pytest.importorskip(
    'mmengine', reason='the plug-in tests need mmengine')

DIMS = [32, 64, 128, 256]
BACKBONE = dict(
    type='fma_vision.FMATransformer',
    arch='nano',
    attn=dict(type='FMAttention2D', cell_size=2),
    out_indices=(0, 1, 2, 3))


def _config(package: str, name: str) -> Any:
    """An installed config, with its scope made the default one."""
    module = pytest.importorskip(package, reason=f'{package} is needed')
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    path = Path(module.__file__).parent / '.mim' / 'configs' / name
    if not path.exists():
        pytest.skip(f'{package} {module.__version__} ships no {name}')
    init_default_scope(package)
    return Config.fromfile(str(path))


def _swap(cfg: Any, backbone: Optional[dict] = None) -> None:
    """Replace the backbone and drop weights meant for the former one."""
    cfg.model.backbone = dict(backbone or BACKBONE)
    cfg.model.pop('pretrained', None)


def _build(cfg: Any, package: str) -> torch.nn.Module:
    from mmengine.model import revert_sync_batchnorm
    registry = importlib.import_module(f'{package}.registry')
    model = revert_sync_batchnorm(registry.MODELS.build(cfg.model))
    assert isinstance(model.backbone, fma_vision.FMATransformer)
    return model


def _train_step(model: torch.nn.Module, cfg: Any, data: dict) -> dict:
    """One step with the config's optimiser; returns the logged losses."""
    from mmengine.optim import build_optim_wrapper
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = [p.detach().clone() for p in model.backbone.parameters()]
    reached = set()  # the step zeroes the gradients in the end
    names = {p: n for n, p in model.backbone.named_parameters()}
    for param in names:
        param.register_post_accumulate_grad_hook(
            lambda param: reached.add(names[param]))
    model.train()
    logs = model.train_step(data, optim_wrapper)
    assert torch.stack([v.sum() for v in logs.values()]).isfinite().all()
    assert reached == set(names.values())
    assert any(not torch.equal(a, b)
               for a, b in zip(before, model.backbone.parameters()))
    return logs


def _segment(cfg: Any, check: Optional[Callable] = None) -> None:
    """One training step and one prediction of a segmentor."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    cfg.model.data_preprocessor.size = (64, 64)
    # One step at the full rate: the configs warm up over 1500 steps.
    model = _build(cfg, 'mmseg')

    def sample(height: int, width: int) -> tuple:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        label = PixelData(data=torch.randint(0, 150, (1, height, width)))
        shape = dict(
            img_shape=(height, width),
            ori_shape=(height, width),
            pad_shape=(height, width))
        return image, SegDataSample(gt_sem_seg=label, metainfo=shape)

    images, samples = zip(*(sample(64, 64) for _ in range(2)))
    logs = _train_step(model, cfg,
                       dict(inputs=list(images), data_samples=list(samples)))
    assert 'decode.loss_ce' in logs
    # Not a multiple of anything, and not square.
    image, data_sample = sample(45, 83)
    with torch.no_grad():
        result = model.eval().test_step(
            dict(inputs=[image], data_samples=[data_sample]))[0]
    assert result.pred_sem_seg.data.shape == (1, 45, 83)
    assert result.seg_logits.data.shape == (150, 45, 83)


def test_mmseg_upernet():
    cfg = _config(
        'mmseg', 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_'
        'ade20k-512x512.py')
    _swap(cfg)
    cfg.model.decode_head.in_channels = DIMS
    cfg.model.auxiliary_head.in_channels = DIMS[2]
    _segment(cfg)


def test_mmseg_semantic_fpn():
    cfg = _config('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    _swap(cfg)
    cfg.model.neck.in_channels = DIMS
    _segment(cfg)


def test_mmseg_segformer_head():
    cfg = _config('mmseg',
                  'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py')
    _swap(cfg)
    cfg.model.decode_head.in_channels = DIMS
    _segment(cfg)


def test_mmseg_window_twin():
    cfg = _config('mmseg',
                  'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py')
    _swap(cfg,
          dict(BACKBONE, attn=dict(type='WindowAttention', window_size=7)))
    cfg.model.decode_head.in_channels = DIMS
    _segment(cfg)


SWIN_CLS = 'swin_transformer/swin-tiny_16xb64_in1k.py'


def _classifier_config(**backbone: Any) -> Any:
    cfg = _config('mmpretrain', SWIN_CLS)
    _swap(cfg, dict(BACKBONE, out_indices=(3, ), **backbone))
    cfg.model.head.in_channels = DIMS[3]
    # mmpretrain keeps these settings outside the model.
    cfg.model.data_preprocessor = cfg.data_preprocessor
    return cfg


def test_mmpretrain_swin_config():
    cfg = _classifier_config()
    model = _build(cfg, 'mmpretrain')
    from mmpretrain.structures import DataSample
    images = torch.randint(0, 256, (4, 3, 50, 70), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    logs = _train_step(model, cfg,
                       dict(inputs=list(images), data_samples=samples))
    assert logs['loss'] > 0
    with torch.no_grad():
        results = model.eval().test_step(
            dict(inputs=list(images), data_samples=samples))
    assert len(results) == 4
    assert all(r.pred_score.shape == (1000, ) for r in results)
    torch.testing.assert_close(results[0].pred_score.sum(), torch.tensor(1.))


def test_mmpretrain_layer_decay_and_no_decay():
    """The host's constructor reads depths and no-decay keys of ours."""
    cfg = _classifier_config()
    cfg.model.backbone.attn = dict(
        type='FMAttention2D', summaries='grouped_conv')
    model = _build(cfg, 'mmpretrain')
    from mmengine.optim import build_optim_wrapper
    keys = {
        key: dict(decay_mult=0.)
        for key in fma_vision.FMATransformer.no_decay_keys
    }
    optim_wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='LearningRateDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1., weight_decay=.05),
            paramwise_cfg=dict(
                layer_decay_rate=.5, norm_decay_mult=0., custom_keys=keys)))
    groups = {g['param_name']: g for g in optim_wrapper.optimizer.param_groups}
    assert set(groups) == {n for n, _ in model.named_parameters()}
    rates = {name: group['lr'] for name, group in groups.items()}
    # 12 blocks, the stem and the rest.
    assert rates['head.fc.weight'] == rates['backbone.norm3.weight'] == 1
    assert rates['backbone.stages.3.blocks.1.mlp.fc1.weight'] == .5
    assert rates['backbone.stages.3.blocks.0.attn.qkv.weight'] == .25
    assert rates['backbone.stages.0.blocks.0.attn.qkv.weight'] == .5**12
    assert rates['backbone.patch_embed.proj.weight'] == .5**13
    for name, group in groups.items():
        free = 'delta' in name or 'norm' in name
        assert group['weight_decay'] == (0 if free else .05), name
    free = model.backbone.no_weight_decay()
    assert free and all(groups[f'backbone.{name}']['weight_decay'] == 0
                        for name in free)


@pytest.mark.parametrize(
    'summaries', [
        'avg', 'grouped_conv', 'conv', 'hierarchical',
        dict(type='hierarchical', shared=True)
    ],
    ids=str)
def test_host_initialisation_keeps_learned_summaries(summaries):
    """Initialising every linear layer must not touch bare parameters.

    After it, each form is the mean over real tokens, in each stage.
    """
    from fma_kernels import Hierarchy, pooling
    learned = summaries != 'avg'
    cfg = _classifier_config()
    cfg.model.backbone.attn = dict(
        type='FMAttention2D',
        cell_size=2,
        rank=2,
        summaries=summaries,
        pool_queries='learned' if learned else True)
    model = _build(cfg, 'mmpretrain')
    assert cfg.model.init_cfg[0]['type'] == 'TruncNormal'
    model.init_weights()
    names = model.backbone.no_weight_decay()
    params = dict(model.backbone.named_parameters())
    assert bool(names) == learned
    assert all((params[name] == 0).all() for name in names)
    x, mask = torch.randn(2, 13, 9, 2, 32), torch.rand(2, 13, 9) < .6
    mask[0, :4, :4] = False
    x = x.masked_fill(~mask[..., None, None], float('nan'))
    tree = Hierarchy((13, 9), 2, rank=2)
    assert tree.num_levels == 2
    means = pooling.average_pyramid(x, tree, mask)
    for stage in model.backbone.stages:
        attn = stage.blocks[-1].attn
        for form in (attn.key_summaries, attn.value_summaries,
                     attn.query_summaries):
            levels = pooling.unpack(form(x, tree, mask), tree)
            for got, mean in zip(levels, means, strict=True):
                torch.testing.assert_close(got, mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    'backbone', [
        dict(),
        dict(position=dict(type='AbsolutePosition', size=(12, 12))),
        dict(
            position='none',
            attn=dict(type='FMAttention2D', cell_size=2, positions='rotary')),
        dict(
            position='none',
            attn=dict(type='FMAttention2D', cell_size=2,
                      positions='relative')),
        dict(position='none'),
    ],
    ids=str)
def test_mmpretrain_positions(backbone):
    """Each form of positions: the host initialises, trains and predicts."""
    cfg = _classifier_config(**backbone)
    model = _build(cfg, 'mmpretrain')
    model.init_weights()
    tables = {
        name: param
        for name, param in model.named_parameters()
        if name[len('backbone.'):] in model.backbone.no_weight_decay()
    }
    for name, table in tables.items():
        if 'absolute' in name:  # as it started, not zero and not uniform
            assert .015 < table.std() < .025
        else:
            assert (table == 0).all()
    # The host's own settings spare the tables, whatever they are named.
    from mmengine.optim import build_optim_wrapper
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decayed = {
        id(p)
        for group in optimizer.param_groups if group['weight_decay']
        for p in group['params']
    }
    assert decayed and not decayed & {id(p) for p in tables.values()}
    from mmpretrain.structures import DataSample
    images = torch.randint(0, 256, (4, 3, 50, 70), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    logs = _train_step(model, cfg,
                       dict(inputs=list(images), data_samples=samples))
    assert logs['loss'] > 0
    with torch.no_grad():
        results = model.eval().test_step(
            dict(inputs=list(images[:, :, :33]), data_samples=samples))
    assert all(r.pred_score.isfinite().all() for r in results)


@pytest.mark.parametrize(
    'backbone, other', [
        (dict(), dict()),
        (dict(position=dict(type='AbsolutePosition', size=7)),
         dict(position=dict(type='AbsolutePosition', size=16))),
        (dict(
            attn=dict(type='FMAttention2D', cell_size=2,
                      positions='relative')),
         dict(
             attn=dict(
                 type='FMAttention2D', cell_size=4, positions='relative'))),
    ],
    ids=str)
def test_classifier_weights_load_into_a_segmentor(tmp_path, backbone, other):
    classifier = _build(_classifier_config(**backbone), 'mmpretrain')
    for param in classifier.parameters():
        torch.nn.init.normal_(param)
    path = str(tmp_path / 'classifier.pth')
    torch.save(dict(state_dict=classifier.state_dict()), path)
    cfg = _config('mmseg',
                  'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py')
    _swap(
        cfg,
        dict(
            BACKBONE,
            init_cfg=dict(
                type='Pretrained', checkpoint=path, prefix='backbone.'),
            **other))
    cfg.model.decode_head.in_channels = DIMS
    segmentor = _build(cfg, 'mmseg')
    segmentor.init_weights()
    loaded = segmentor.backbone.state_dict()
    source = classifier.backbone.state_dict()
    assert set(loaded) - set(source) == {
        f'norm{i}.{kind}'
        for i in range(3)
        for kind in ('weight', 'bias')
    }
    for name, param in source.items():
        if loaded[name].shape == param.shape:
            assert torch.equal(loaded[name], param), name
        else:  # a table, resized: not as small as at the start
            assert other and loaded[name].std() > .2, name


def test_timm_weights_load_into_a_classifier():
    import timm
    classifier = _build(_classifier_config(), 'mmpretrain')
    source = timm.create_model(
        'fma_nano', attn=dict(type='FMAttention2D', cell_size=2))
    classifier.load_state_dict(source.state_dict())
    x = torch.randn(1, 3, 50, 70)
    classifier.eval()
    with torch.no_grad():
        expected = source.eval()(x)
        got = classifier(x, mode='tensor')
        got = classifier.head.fc(got[-1]) if isinstance(got, tuple) else got
    torch.testing.assert_close(got, expected)


def test_mmdet_retinanet():
    try:
        # Importing can fail even where it is installed: its operators are
        # compiled in mmcv.
        importlib.import_module('mmdet.models')
    except ImportError as error:
        pytest.skip(f'mmdet with compiled operators is needed: {error}')
    cfg = _config('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py')
    # Its neck skips the first of four maps; that one is not made at all.
    _swap(cfg, dict(BACKBONE, out_indices=(1, 2, 3)))
    cfg.model.neck.in_channels = DIMS[1:]
    cfg.model.neck.start_level = 0
    model = _build(cfg, 'mmdet')
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(96, 128),
            ori_shape=(96, 128),
            pad_shape=(96, 128),
            batch_input_shape=(96, 128),
            scale_factor=(1., 1.)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10., 12., 70., 80.], [40., 5., 120., 60.]]),
        labels=torch.tensor([3, 17]))
    logs = _train_step(model, cfg, dict(inputs=[image], data_samples=[sample]))
    assert logs['loss_cls'] > 0 and logs['loss_bbox'] > 0
    with torch.no_grad():
        result = model.eval().test_step(
            dict(inputs=[image], data_samples=[sample]))[0]
    boxes = result.pred_instances.bboxes
    assert boxes.ndim == 2 and boxes.shape[1] == 4
