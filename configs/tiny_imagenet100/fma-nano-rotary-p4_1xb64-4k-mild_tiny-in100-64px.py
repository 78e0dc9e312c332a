# 256,000 images instead of 64,000; queries and keys turned by their places.
_base_ = './fma-nano-p4_1xb64-1k-mild_tiny-in100-64px.py'

model = dict(backbone=dict(attn=dict(positions='rotary')))

train_cfg = dict(max_iters=4000)
