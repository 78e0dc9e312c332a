_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/cifar10_folder_b128.py',
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

train_cfg = dict(max_epochs=60, val_interval=5)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
