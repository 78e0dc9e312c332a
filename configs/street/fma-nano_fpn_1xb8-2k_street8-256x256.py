# The demo's model. 2,000 batches of eight 256 x 256 crops: about 14 passes
# over the 1,123 training images, one hour on one CPU core. Change the length
# with
#   --cfg-options train_cfg.max_iters=N
_base_ = [
    '../_base_/models/fma-nano_fpn.py',
    '../_base_/schedules/schedule_small_seg.py',
    '../_base_/default_runtime_seg.py'
]

# About (share of pixels) ** -0.35, relative to road: doors are 0.6 % and
# windows 3 % of the pixels, buildings 40 %.
class_weight = [0.8, 1.7, 3.4, 1.6, 1.0, 1.2, 1.4, 1.9]
model = dict(
    # Too short a run to overfit, so nothing is dropped.
    backbone=dict(drop_path_rate=0.),
    decode_head=dict(
        num_classes=8, loss_decode=dict(class_weight=class_weight)))

# Eight street classes from two sets. Train: 756 LabelMeFacade photographs
# and the 367 CamVid training frames. Val: 189 LabelMeFacade photographs of
# other collections and the 101 CamVid validation frames, scored apart.
facade_root = 'data/labelmefacade'
camvid_root = 'data/camvid'
crop_size = (256, 256)
meta_keys = ('img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'pad_shape',
             'scale_factor', 'flip', 'flip_direction', 'reduce_zero_label',
             'subset')

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(512, 512),
        ratio_range=(0.5, 1.75),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs', meta_keys=meta_keys)
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    # Loaded after the resize: labels are compared at their own size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs', meta_keys=meta_keys)
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[[
            dict(type='Resize', scale=(s, s), keep_ratio=True)
            for s in (384, 512, 640)
        ],
                    [
                        dict(
                            type='RandomFlip', prob=p, direction='horizontal')
                        for p in (0., 1.)
                    ], [dict(type='LoadAnnotations')],
                    [dict(type='PackSegInputs', meta_keys=meta_keys)]])
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='fma_vision.ConcatDataset',
        pipeline=train_pipeline,
        # CamVid carries a table from its own labels.
        ignore_keys=['label_map'],
        datasets=[
            dict(
                type='fma_vision.LabelMeFacadeDataset',
                data_root=facade_root,
                split='train',
                subset='labelmefacade'),
            dict(
                type='fma_vision.CamVidStreet8Dataset',
                data_root=camvid_root,
                data_prefix=dict(
                    img_path='images/training',
                    seg_map_path='annotations/training'),
                subset='camvid')
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.ConcatDataset',
        pipeline=test_pipeline,
        ignore_keys=['label_map'],
        datasets=[
            dict(
                type='fma_vision.LabelMeFacadeDataset',
                data_root=facade_root,
                split='val',
                subset='labelmefacade'),
            dict(
                type='fma_vision.CamVidStreet8Dataset',
                data_root=camvid_root,
                data_prefix=dict(
                    img_path='images/validation',
                    seg_map_path='annotations/validation'),
                subset='camvid')
        ]))
test_dataloader = val_dataloader

val_evaluator = [
    dict(
        type='fma_vision.SubsetIoUMetric', subset=subset, iou_metrics=['mIoU'])
    for subset in ('labelmefacade', 'camvid')
]
test_evaluator = val_evaluator

train_cfg = dict(max_iters=2000, val_interval=2000)
default_hooks = dict(
    checkpoint=dict(
        interval=500,
        max_keep_ckpts=1,
        save_best='labelmefacade/mIoU',
        rule='greater'))
# The averaged weights are the ones validated and kept; half of the average
# is younger than 350 iterations.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.002,
        update_buffers=True,
        priority='ABOVE_NORMAL')
]
randomness = dict(seed=0)
