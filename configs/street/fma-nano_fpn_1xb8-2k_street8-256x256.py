# The demo's model. 2,000 batches of eight 256 x 256 crops: about 14 passes
# over the 1,123 training images, one hour on one CPU core. Change the length
# with
#   --cfg-options train_cfg.max_iters=N
_base_ = [
    '../_base_/models/fma-nano_fpn.py', '../_base_/datasets/street8.py',
    '../_base_/schedules/schedule_small_seg.py',
    '../_base_/default_runtime_seg.py'
]

# About (share of pixels) ** -0.35, relative to road: doors are 0.6 % and
# windows 3 % of the pixels, buildings 40 %.
class_weight = [0.8, 1.7, 3.4, 1.6, 1.0, 1.2, 1.4, 1.9]
model = dict(
    # Too short a run to overfit, so nothing is dropped.
    backbone=dict(drop_path_rate=0.),
    decode_head=dict(
        num_classes=8, loss_decode=dict(class_weight=class_weight)))

train_cfg = dict(max_iters=2000, val_interval=2000)
default_hooks = dict(
    checkpoint=dict(
        interval=500,
        max_keep_ckpts=1,
        save_best='labelmefacade/mIoU',
        rule='greater'))
# The averaged weights are the ones validated and kept; half of the average
# is younger than 350 iterations.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=0.002,
        update_buffers=True,
        priority='ABOVE_NORMAL')
]
randomness = dict(seed=0)
