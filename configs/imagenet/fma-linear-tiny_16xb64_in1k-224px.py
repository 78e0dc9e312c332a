# The same model, schedule and data; FMA with pooled queries.
_base_ = [
    './fma-tiny_16xb64_in1k-224px.py', '../_base_/attention/fma_linear.py'
]

model = dict(backbone=dict(attn=_base_.attention.backbone))
