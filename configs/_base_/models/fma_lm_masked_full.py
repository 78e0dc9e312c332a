# The twin of fma_lm_masked.py with attention over all tokens.
_base_ = './fma_lm_masked.py'

model = dict(net=dict(attn=dict(_delete_=True, type='FullAttention1D')))
