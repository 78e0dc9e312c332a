# The same backbone, schedule and data with a band and linear far fields.
_base_ = './fma-nano_fpn_1xb4-400_camvid-240x320.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='FMMformerAttention2D', kernel_size=7)))
