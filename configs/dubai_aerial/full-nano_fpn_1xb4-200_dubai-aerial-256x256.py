# The same backbone, schedule and data with attention over all tokens.
_base_ = './fma-nano_fpn_1xb4-200_dubai-aerial-256x256.py'

model = dict(backbone=dict(attn=dict(_delete_=True, type='FullAttention')))
