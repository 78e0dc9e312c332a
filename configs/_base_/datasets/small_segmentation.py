# What sets of photographs and masks for small models share. A config gives
# `type` and `data_root` of the datasets, and makes its pipelines of a load,
# its own sizes, and the rest.
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
]
augment = [
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
# Loaded after the resize: labels are compared at their own size.
label = [dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[[
            dict(type='Resize', scale_factor=f, keep_ratio=True)
            for f in (0.75, 1.0, 1.25)
        ],
                    [
                        dict(
                            type='RandomFlip', prob=p, direction='horizontal')
                        for p in (0., 1.)
                    ], [dict(type='LoadAnnotations')],
                    [dict(type='PackSegInputs')]])
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        cache_images=True,
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        cache_images=True,
        data_prefix=dict(
            img_path='images/validation',
            seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
