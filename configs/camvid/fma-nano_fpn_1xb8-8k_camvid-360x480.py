_base_ = [
    '../_base_/models/fma-nano_fpn.py',
    '../_base_/datasets/small_segmentation.py',
    '../_base_/schedules/schedule_small_seg.py',
    '../_base_/default_runtime_seg.py'
]

# Whole frames, or as large a part of an enlarged one.
crop_size = (360, 480)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor, decode_head=dict(num_classes=11))

# CamVid: 367 + 101 frames of 480 x 360, 11 classes.
source = dict(type='fma_vision.CamVidDataset', data_root='data/camvid')
train_pipeline = [
    *_base_.load,
    dict(
        type='RandomResize',
        scale=(480, 360),
        ratio_range=(0.75, 2.0),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *_base_.augment
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(480, 360), keep_ratio=True), *_base_.label
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **source))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **source))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=8000, val_interval=1000)
default_hooks = dict(
    checkpoint=dict(interval=1000, save_best='mIoU', rule='greater'))
randomness = dict(seed=0)
