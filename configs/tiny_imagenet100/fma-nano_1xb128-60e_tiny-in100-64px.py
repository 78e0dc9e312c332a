_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/tiny_imagenet100_b128.py',
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

train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
