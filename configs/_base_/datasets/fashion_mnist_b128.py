# Fashion-MNIST: grey images, 28 x 28; mean and deviation of its train set.
data_preprocessor = dict(num_classes=10, mean=[72.94], std=[90.02])
train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='fma_vision.FashionMNISTDataset',
        data_root='data/fashion_mnist',
        split='train',
        expected_length=60000,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.FashionMNISTDataset',
        data_root='data/fashion_mnist',
        split='test',
        expected_length=10000,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
