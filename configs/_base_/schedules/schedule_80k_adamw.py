# 80k iterations at a total batch of 16 for light heads (Semantic FPN): AdamW
# with mixed precision, short warm-up, polynomial decay.
_base_ = './schedule_160k_adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))

param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1500),
    dict(
        type='PolyLR',
        eta_min=0.0,
        power=0.9,
        begin=1500,
        end=80000,
        by_epoch=False),
]

train_cfg = dict(max_iters=80000, val_interval=8000)
