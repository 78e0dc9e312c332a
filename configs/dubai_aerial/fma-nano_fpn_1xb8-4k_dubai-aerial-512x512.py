_base_ = [
    '../_base_/models/fma-nano_fpn.py',
    '../_base_/datasets/small_segmentation.py',
    '../_base_/schedules/schedule_small_seg.py',
    '../_base_/default_runtime_seg.py'
]

crop_size = (512, 512)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor, decode_head=dict(num_classes=6))

# Dubai aerial: 45 + 9 tiles of 500 to 1100 px, 6 classes.
source = dict(
    type='fma_vision.DubaiAerialDataset', data_root='data/dubai_aerial')
train_pipeline = [
    *_base_.load,
    dict(
        type='RandomResize',
        scale=(768, 768),
        ratio_range=(0.5, 1.5),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *_base_.augment
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(768, 768), keep_ratio=True), *_base_.label
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **source))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **source))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=4000, val_interval=500)
default_hooks = dict(
    checkpoint=dict(interval=500, save_best='mIoU', rule='greater'))
randomness = dict(seed=0)
