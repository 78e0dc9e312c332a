# The same backbone, schedule and data; FMA with pooled queries.
_base_ = './fma-nano-p2_1xb64-300_cifar10-32px.py'

model = dict(backbone=dict(attn=dict(pool_queries=True)))
