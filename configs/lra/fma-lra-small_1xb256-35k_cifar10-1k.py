# CIFAR-10 pixel by pixel: 50,000 + 10,000 grey images as 1,024 tokens.
_base_ = './fma-lra-small_1xb32-5k_listops.py'

# Few positions leave room for a third block.
model = dict(net=dict(vocab_size=256, depth=3, mlp_ratio=2., max_length=1024))

source = dict(
    _delete_=True,
    type='fma_vision.SequentialCIFAR10',
    data_root='data/cifar10')
train_dataloader = dict(
    batch_size=256,
    num_workers=2,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(split='train', expected_length=50000, **source))
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    dataset=dict(split='test', expected_length=10000, **source))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=35000, val_interval=1000)
# The data has no validation part: what is best on the test set is not kept.
default_hooks = dict(checkpoint=dict(save_best=None))
