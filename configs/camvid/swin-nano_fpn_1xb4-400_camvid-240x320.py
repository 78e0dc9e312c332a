# The same backbone, schedule and data with Swin's shifted windows.
_base_ = [
    './fma-nano_fpn_1xb4-400_camvid-240x320.py',
    '../_base_/attention/window.py'
]

model = dict(backbone=dict(attn=_base_.attention.backbone))
