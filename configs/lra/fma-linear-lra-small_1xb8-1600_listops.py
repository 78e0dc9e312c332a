# The same with pooled queries, the linear variant.
_base_ = './fma-lra-small_1xb8-1600_listops.py'

model = dict(net=dict(attn=dict(pool_queries=True)))
