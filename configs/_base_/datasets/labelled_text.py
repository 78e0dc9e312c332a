# Byte-level text classification: folder/<split>/<label>/*.txt. As it is, the
# IMDb reviews, as in Long Range Arena: 25,000 + 25,000, cut at 4,000 bytes.
data_root = 'data/aclImdb'
classes = ('neg', 'pos')
train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='fma_vision.LengthGroupedSampler', batch_size=32),
    dataset=dict(
        type='fma_vision.TextClassificationDataset',
        data_root=data_root,
        split='train',
        classes=classes,
        max_length=4000))
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextClassificationDataset',
        data_root=data_root,
        split='test',
        classes=classes,
        max_length=4000))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
