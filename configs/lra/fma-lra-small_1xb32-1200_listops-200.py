# Expressions of less than 200 tokens, for minutes on one core; small cells, so
# that there is a far field.
_base_ = './fma-lra-small_1xb32-5k_listops.py'

# What is seen once is not learnt by heart.
model = dict(net=dict(drop_rate=0., attn=dict(cell_size=16)))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=False,
        begin=100)
]
data_root = 'data/listops-200'
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(data_root=data_root), **workers)
train_cfg = dict(max_iters=1200, val_interval=200)
# Every tenth expression while training; the test reads them all.
val_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root, samples=200), **workers)
test_dataloader = dict(
    batch_size=8, dataset=dict(data_root=data_root), **workers)
default_hooks = dict(checkpoint=dict(interval=200))
