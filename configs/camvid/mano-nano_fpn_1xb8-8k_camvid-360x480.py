# The same backbone, schedule and data with windows on several scales.
_base_ = './fma-nano_fpn_1xb8-8k_camvid-360x480.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='MANOAttention', window_size=8)))
