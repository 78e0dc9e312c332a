_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/fashion_mnist_b128.py',
    '../_base_/schedules/schedule_small_cls.py',
    '../_base_/default_runtime_cls.py'
]

# Patches of two pixels: maps of 14, 7 and 4 tokens a side.
model = dict(backbone=dict(in_channels=1))

train_cfg = dict(max_epochs=3)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
