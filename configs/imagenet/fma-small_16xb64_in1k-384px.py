_base_ = './fma-tiny_16xb64_in1k-384px.py'

model = dict(backbone=dict(arch='small'))
load_from = 'work_dirs/fma-small_16xb64_in1k-224px/epoch_300.pth'
