_base_ = './fma-tiny_16xb64_in1k-384px.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=1024))
load_from = 'work_dirs/fma-base_16xb64_in1k-224px/epoch_300.pth'
