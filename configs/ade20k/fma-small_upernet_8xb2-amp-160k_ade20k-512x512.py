_base_ = './fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='small'))
