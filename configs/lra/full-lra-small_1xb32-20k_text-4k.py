# The same model, schedule and data with attention over all tokens.
_base_ = './fma-lra-small_1xb32-20k_text-4k.py'

model = dict(net=dict(attn=dict(_delete_=True, type='FullAttention1D')))
