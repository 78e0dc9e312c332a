# Queries and keys turned by their places, beside the convolution.
_base_ = './fma-nano-p4_1xb64-1k_tiny-in100-64px.py'

model = dict(backbone=dict(attn=dict(positions='rotary')))
