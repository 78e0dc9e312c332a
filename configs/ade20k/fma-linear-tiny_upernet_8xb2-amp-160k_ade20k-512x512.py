# The same model, schedule and data; FMA with pooled queries.
_base_ = [
    './fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
    '../_base_/attention/fma_linear.py'
]

model = dict(backbone=dict(attn=_base_.attention.backbone))
