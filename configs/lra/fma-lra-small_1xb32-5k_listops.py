# ListOps of Long Range Arena: 96,000 + 2,000 + 2,000 expressions of 501 to
# 1,999 tokens. No decay; the cosine goes down to 1 %.
_base_ = [
    '../_base_/models/fma_sequence.py', '../_base_/schedules/schedule_lm.py',
    '../_base_/default_runtime_lm.py'
]

model = dict(net=dict(vocab_size=15, max_length=2000))

data_root = 'data/listops'
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='fma_vision.LengthGroupedSampler', batch_size=32),
    dataset=dict(
        type='fma_vision.ListOpsDataset',
        data_root=data_root,
        path='train.tsv'))
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.ListOpsDataset', data_root=data_root, path='val.tsv'))
test_dataloader = dict(val_dataloader)
test_dataloader['dataset'] = dict(val_dataloader['dataset'], path='test.tsv')
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=False,
        begin=500)
]
train_cfg = dict(max_iters=5000, val_interval=500)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
