# CIFAR-10 pixel by pixel: 50,000 + 10,000 grey images as 1,024 tokens.
data_root = 'data/cifar10'
train_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='fma_vision.SequentialCIFAR10',
        data_root=data_root,
        split='train',
        expected_length=50000))
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='fma_vision.pad_sequences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.SequentialCIFAR10',
        data_root=data_root,
        split='test',
        expected_length=10000))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
