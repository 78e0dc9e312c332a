# The same with pooled queries, the linear variant.
_base_ = './fma-lra-small_1xb32-1200_listops-200.py'

model = dict(net=dict(attn=dict(pool_queries=True)))
