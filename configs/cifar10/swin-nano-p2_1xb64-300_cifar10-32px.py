# The same backbone, schedule and data with Swin's shifted windows.
_base_ = './fma-nano-p2_1xb64-300_cifar10-32px.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='WindowAttention', window_size=8)))
