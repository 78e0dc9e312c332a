_base_ = './fma-tiny_16xb64_in1k-224px.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
