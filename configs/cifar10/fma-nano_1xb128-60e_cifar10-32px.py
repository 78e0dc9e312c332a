_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/small_classification.py',
    '../_base_/schedules/schedule_small_cls.py',
    '../_base_/default_runtime_cls.py'
]

# One token per pixel: maps of 32, 16 and 8 tokens a side.
model = dict(
    backbone=dict(patch_size=1),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0)
    ]))

# CIFAR-10 as image files, one folder per class.
source = dict(
    type='fma_vision.CIFAR10FolderDataset',
    data_root='data/cifar10',
    cache_images=True)
data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    # Image files are read as BGR.
    to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(expected_length=50000, pipeline=train_pipeline, **source))
val_dataloader = dict(
    dataset=dict(expected_length=10000, pipeline=test_pipeline, **source))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
