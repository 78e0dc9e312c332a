# The same backbone, schedule and data with Swin's shifted windows.
_base_ = './fma-nano_fpn_1xb8-8k_camvid-360x480.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='WindowAttention', window_size=8)))
