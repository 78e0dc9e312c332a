# 4,000 crops instead of 1,600; the layers begin with a look nearby.
_base_ = './fma-nano_fpn_1xb4-400_camvid-240x320.py'

model = dict(backbone=dict(attn=dict(positions='relative', relative_slope=1.)))

train_cfg = dict(max_iters=1000)
