_base_ = './default_runtime_lm.py'

default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
