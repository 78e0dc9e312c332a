# The same backbone, schedule and data; FMA with pooled queries.
_base_ = './fma-nano_fpn_1xb8-4k_dubai-aerial-512x512.py'

model = dict(backbone=dict(attn=dict(pool_queries=True)))
