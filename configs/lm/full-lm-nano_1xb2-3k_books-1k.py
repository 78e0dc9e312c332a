# The same model, schedule and data with attention over all tokens.
_base_ = ['./fma-lm-nano_1xb2-3k_books-1k.py', '../_base_/attention/full.py']

model = dict(net=dict(attn=_base_.attention.net))
