# The twin of fma_lm.py with attention over all tokens.
_base_ = './fma_lm.py'

model = dict(net=dict(attn=dict(_delete_=True, type='FullAttention1D')))
