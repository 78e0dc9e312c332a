# 4,000 crops instead of 1,600; queries and keys turned by their places.
_base_ = './fma-nano_fpn_1xb4-400_camvid-240x320.py'

model = dict(backbone=dict(attn=dict(positions='rotary')))

train_cfg = dict(max_iters=1000)
