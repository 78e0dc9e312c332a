# Milder augmentation, for so few images: crops of 60 % and more, colours as
# they are, no layer dropped.
_base_ = './fma-nano-p4_1xb64-1k_tiny-in100-64px.py'

model = dict(backbone=dict(drop_path_rate=0.))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.6, 1.0),
        backend='pillow',
        interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
