# The same backbone, schedule and data; FMA with pooled queries.
_base_ = './fma-nano_fpn_1xb4-200_dubai-aerial-256x256.py'

model = dict(backbone=dict(attn=dict(pool_queries=True)))
