# At most half an hour on one core: 13 % of the set, each once.
_base_ = './fma-lra-small_1xb32-5k_listops.py'

# What is seen once is not learnt by heart.
model = dict(net=dict(drop_rate=0.))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=False,
        begin=100)
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(batch_size=8))
train_cfg = dict(max_iters=1600, val_interval=200)
# Every tenth expression while training; the test reads them all.
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(samples=200))
test_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)
default_hooks = dict(checkpoint=dict(interval=200))
