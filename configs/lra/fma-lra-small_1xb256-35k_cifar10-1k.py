# Few positions leave room for a third block.
_base_ = [
    '../_base_/models/fma_sequence.py',
    '../_base_/datasets/sequential_cifar10.py',
    '../_base_/schedules/schedule_lra.py', '../_base_/default_runtime_lra.py'
]

model = dict(net=dict(depth=3, mlp_ratio=2., max_length=1024))

train_cfg = dict(max_iters=35000, val_interval=1000)
# The data has no validation part: what is best on the test set is not kept.
default_hooks = dict(checkpoint=dict(save_best=None))
