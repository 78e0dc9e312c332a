# Byte-level text classification: folder/<split>/<label>/*.txt. As it is, the
# IMDb reviews, as in Long Range Arena: 25,000 + 25,000, cut at 4,000 bytes.
_base_ = './fma-lra-small_1xb32-5k_listops.py'

# 4,000 positions take most of the parameters: narrower than for the others.
model = dict(
    net=dict(vocab_size=256, num_classes=2, embed_dims=96, max_length=4000))

source = dict(
    _delete_=True,
    type='fma_vision.TextClassificationDataset',
    data_root='data/aclImdb',
    classes=('neg', 'pos'),
    max_length=4000)
train_dataloader = dict(num_workers=2, dataset=dict(split='train', **source))
val_dataloader = dict(num_workers=2, dataset=dict(split='test', **source))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=20000, val_interval=2000)
# The data has no validation part: what is best on the test set is not kept.
default_hooks = dict(checkpoint=dict(save_best=None))
