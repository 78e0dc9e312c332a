# The same backbone, schedule and data with attention over all tokens.
_base_ = './fma-nano-p4_1xb64-1k_tiny-in100-64px.py'

model = dict(backbone=dict(attn=dict(_delete_=True, type='FullAttention')))
