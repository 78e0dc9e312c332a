# Goes on from a 1k model, so that 16k tokens are no new positions to it:
#   tools/train.py configs/lm/full-lm-nano_1xb2-3k_books-1k.py
#     --cfg-options model.net.num_heads=4
#     --work-dir work_dirs/full-lm-nano-4h_1xb2-3k_books-1k
_base_ = './full-lm-nano_1xb2-3k_books-1k.py'

# Wide heads, so that two layers give the 8 x 64 of the operation benchmarks:
# the source of real queries, keys and values.
model = dict(net=dict(num_heads=4))

load_from = 'work_dirs/full-lm-nano-4h_1xb2-3k_books-1k/iter_3000.pth'
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.1, by_epoch=False, begin=5)
]
train_dataloader = dict(batch_size=1, dataset=dict(length=16384))
val_dataloader = dict(batch_size=1, dataset=dict(length=16384, samples=4))
test_dataloader = dict(batch_size=1, dataset=dict(length=16384))
train_cfg = dict(max_iters=40, val_interval=20)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=10))
