# Minutes on one CPU core: crops of 256 x 256, 800 of them.
_base_ = './fma-nano_fpn_1xb8-4k_dubai-aerial-512x512.py'

crop_size = (256, 256)
model = dict(data_preprocessor=dict(size=crop_size))

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
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=30),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=30)
]
train_cfg = dict(max_iters=200, val_interval=100)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
