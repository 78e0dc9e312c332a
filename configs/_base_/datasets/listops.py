# ListOps of Long Range Arena: 96,000 + 2,000 + 2,000 expressions of 501 to
# 1,999 tokens.
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
test_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.ListOpsDataset', data_root=data_root,
        path='test.tsv'))
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
