# Windows of a text in bytes: random ones to train on, all in turn to score.
# Other texts and lengths are other settings of the three datasets.
data_root = 'data/books'
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    # The dataset draws the windows, the sampler counts.
    sampler=dict(type='InfiniteSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='train.txt',
        split=None,
        length=1024,
        mode='random',
        # After so many windows the same ones come again.
        samples=1000000,
        vocabulary='bytes',
        vocab_size=256))
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='valid.txt',
        split=None,
        length=1024,
        mode='sequential',
        vocabulary='bytes',
        vocab_size=256))
test_dataloader = val_dataloader
val_evaluator = dict(type='fma_vision.BitsPerCharacter')
test_evaluator = val_evaluator
