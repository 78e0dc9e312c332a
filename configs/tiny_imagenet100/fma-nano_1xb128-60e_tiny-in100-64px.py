_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/small_classification.py',
    '../_base_/schedules/schedule_small_cls.py',
    '../_base_/default_runtime_cls.py'
]

# All four stages: maps of 32, 16, 8 and 4 tokens a side.
model = dict(
    backbone=dict(out_indices=(3, )),
    head=dict(num_classes=100, in_channels=256),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0)
    ]))

# 100 classes of Tiny ImageNet, 64 x 64.
source = dict(
    type='fma_vision.TinyImageNet100Dataset',
    data_root='data/tiny_imagenet100',
    cache_images=True)
data_preprocessor = dict(
    num_classes=100,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.35, 1.0),
        interpolation='bicubic',
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(expected_length=50000, pipeline=train_pipeline, **source))
val_dataloader = dict(
    batch_size=100,
    dataset=dict(
        split='val', expected_length=5000, pipeline=test_pipeline, **source))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
