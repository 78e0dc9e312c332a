# Tiny Shakespeare: 1.1 M characters, 65 symbols; its last tenth validates.
data_root = 'data/tinyshakespeare'
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    # The dataset draws the windows, the sampler counts.
    sampler=dict(type='InfiniteSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='input.txt',
        split='train',
        length=256,
        mode='random',
        # After so many windows the same ones come again.
        samples=1000000,
        vocabulary='characters',
        vocab_size=65))
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='input.txt',
        split='valid',
        length=256,
        mode='sequential',
        vocabulary='characters',
        vocab_size=65))
test_dataloader = val_dataloader
val_evaluator = dict(type='fma_vision.BitsPerCharacter')
test_evaluator = val_evaluator
