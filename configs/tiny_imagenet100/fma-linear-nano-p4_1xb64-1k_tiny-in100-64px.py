# The same backbone, schedule and data; FMA with pooled queries.
_base_ = './fma-nano-p4_1xb64-1k_tiny-in100-64px.py'

model = dict(backbone=dict(attn=dict(pool_queries=True)))
