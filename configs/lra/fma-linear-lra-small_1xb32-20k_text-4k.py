# The same with pooled queries, the linear variant.
_base_ = './fma-lra-small_1xb32-20k_text-4k.py'

model = dict(net=dict(attn=dict(pool_queries=True)))
