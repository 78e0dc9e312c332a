# The same backbone, schedule and data with a band and linear far fields.
_base_ = './fma-nano-p4_1xb64-1k_tiny-in100-64px.py'

model = dict(
    backbone=dict(
        attn=dict(_delete_=True, type='FMMformerAttention2D', kernel_size=7)))
