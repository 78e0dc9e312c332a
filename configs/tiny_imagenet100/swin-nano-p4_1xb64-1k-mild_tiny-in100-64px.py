# The same backbone, schedule and data with Swin's shifted windows.
_base_ = './fma-nano-p4_1xb64-1k-mild_tiny-in100-64px.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='WindowAttention', window_size=8)))
