# The same with pooled queries, the linear variant.
_base_ = './fma-lra-small_1xb256-35k_cifar10-1k.py'

model = dict(net=dict(attn=dict(pool_queries=True)))
