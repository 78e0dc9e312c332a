# The same backbone, schedule and data with windows on several scales.
_base_ = './fma-nano_fpn_1xb4-200_dubai-aerial-256x256.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='MANOAttention', window_size=8)))
