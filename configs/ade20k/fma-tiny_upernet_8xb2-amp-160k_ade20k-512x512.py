# ImageNet weights for the backbone (none are published yet) are named on the
# command line; without them this trains from scratch:
#   --cfg-options model.backbone.init_cfg.type=Pretrained
#     model.backbone.init_cfg.prefix=backbone.
#     model.backbone.init_cfg.checkpoint=PATH
_base_ = [
    '../_base_/models/fma_upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_160k_adamw.py',
    '../_base_/default_runtime_seg.py',
]

default_hooks = dict(checkpoint=dict(interval=16000, save_best='mIoU'))
