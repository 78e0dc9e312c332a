# The same backbone, schedule and data; FMA with pooled queries.
_base_ = './fma-nano_fpn_1xb4-400_camvid-240x320.py'

model = dict(backbone=dict(attn=dict(pool_queries=True)))
