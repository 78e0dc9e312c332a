# The same model, schedule and data with attention over all tokens.
_base_ = './fma-lra-small_1xb32-1200_listops-200.py'

model = dict(net=dict(attn=dict(_delete_=True, type='FullAttention1D')))
