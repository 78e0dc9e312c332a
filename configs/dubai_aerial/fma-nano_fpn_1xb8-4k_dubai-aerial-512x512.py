_base_ = [
    '../_base_/models/fma-nano_fpn.py', '../_base_/datasets/dubai_aerial.py',
    '../_base_/schedules/schedule_small_seg.py',
    '../_base_/default_runtime_seg.py'
]

crop_size = (512, 512)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor, decode_head=dict(num_classes=6))

train_cfg = dict(max_iters=4000, val_interval=500)
default_hooks = dict(
    checkpoint=dict(interval=500, save_best='mIoU', rule='greater'))
randomness = dict(seed=0)
