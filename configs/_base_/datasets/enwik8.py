# enwik8: the first 10^8 bytes of a Wikipedia dump, which the user puts at
# data/enwik8/enwik8. Split as usual: 90 + 5 + 5 M bytes; scored in bits
# per byte.
data_root = 'data/enwik8'
fractions = dict(valid_fraction=0.05, test_fraction=0.05)
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
        path='enwik8',
        split='train',
        length=1024,
        mode='random',
        # After so many windows the same ones come again.
        samples=1000000,
        vocabulary='bytes',
        vocab_size=256,
        **fractions))
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='enwik8',
        split='valid',
        length=1024,
        mode='sequential',
        vocabulary='bytes',
        vocab_size=256,
        **fractions))
test_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='fma_vision.TextDataset',
        data_root=data_root,
        path='enwik8',
        split='test',
        length=1024,
        mode='sequential',
        vocabulary='bytes',
        vocab_size=256,
        **fractions))
val_evaluator = dict(type='fma_vision.BitsPerCharacter')
test_evaluator = val_evaluator
