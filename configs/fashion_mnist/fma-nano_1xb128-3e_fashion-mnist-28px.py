_base_ = [
    '../_base_/models/fma-nano_cls.py',
    '../_base_/datasets/small_classification.py',
    '../_base_/schedules/schedule_small_cls.py',
    '../_base_/default_runtime_cls.py'
]

# Patches of two pixels: maps of 14, 7 and 4 tokens a side.
model = dict(backbone=dict(in_channels=1))

# Fashion-MNIST: grey images, 28 x 28; mean and deviation of its train set.
source = dict(
    type='fma_vision.FashionMNISTDataset', data_root='data/fashion_mnist')
data_preprocessor = dict(num_classes=10, mean=[72.94], std=[90.02])
train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [
    # The set is grey; what an inferencer is given may have colours.
    dict(
        type='RandomGrayscale', prob=1.,
        channel_weights=(0.114, 0.587, 0.299)),
    dict(type='PackInputs')
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(expected_length=60000, pipeline=train_pipeline, **source))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(expected_length=10000, pipeline=test_pipeline, **source))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=3)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', rule='greater'))
randomness = dict(seed=0)
