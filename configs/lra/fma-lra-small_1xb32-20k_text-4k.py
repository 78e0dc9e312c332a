# 4,000 positions take most of the parameters: narrower than for the others.
_base_ = [
    '../_base_/models/fma_sequence.py', '../_base_/datasets/labelled_text.py',
    '../_base_/schedules/schedule_lra.py', '../_base_/default_runtime_lra.py'
]

model = dict(net=dict(num_classes=2, embed_dims=96, max_length=4000))

train_cfg = dict(max_iters=20000, val_interval=2000)
# The data has no validation part: what is best on the test set is not kept.
default_hooks = dict(checkpoint=dict(save_best=None))
