# The same backbone, schedule and data with a band and linear far fields.
_base_ = './fma-nano_fpn_1xb8-4k_dubai-aerial-512x512.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='FMMformerAttention2D', kernel_size=7)))
