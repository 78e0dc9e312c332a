# The same backbone, schedule and data with windows on several scales.
_base_ = './fma-nano-p2_1xb64-300_cifar10-32px.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='MANOAttention', window_size=8)))
