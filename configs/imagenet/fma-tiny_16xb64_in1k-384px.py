# Fine-tunes the 224 px classifier as in the Swin paper: 30 epochs at a
# constant learning rate of 1e-5 for a total batch of 1024, next to no decay.
# Every weight fits, because nothing in the backbone depends on the image size.
_base_ = './fma-tiny_16xb64_in1k-224px.py'

model = dict(backbone=dict(drop_path_rate=0.1))

# Whole images at test time, no centre crop.
crop = dict(
    type='RandomResizedCrop',
    scale=384,
    backend='pillow',
    interpolation='bicubic')
train_pipeline = [_base_.train_pipeline[0], crop, *_base_.train_pipeline[2:]]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=384, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True)]
train_cfg = dict(max_epochs=30)

# Where the 224 px config leaves its last epoch; no weights are published
# yet. Name another file with `--cfg-options load_from=PATH`.
load_from = 'work_dirs/fma-tiny_16xb64_in1k-224px/epoch_300.pth'
