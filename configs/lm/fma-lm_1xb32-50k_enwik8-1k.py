# enwik8: the first 10^8 bytes of a Wikipedia dump, which the user puts at
# data/enwik8/enwik8. Split as usual: 90 + 5 + 5 M bytes; scored in bits
# per byte.
_base_ = './fma-lm_1xb32-20k_books-1k.py'

source = dict(
    data_root='data/enwik8',
    path='enwik8',
    valid_fraction=0.05,
    test_fraction=0.05)
train_dataloader = dict(dataset=dict(split='train', **source))
# All 5 M characters are for the test.
val_dataloader = dict(dataset=dict(split='valid', samples=1000, **source))
test_dataloader = dict(dataset=dict(split='test', **source))

train_cfg = dict(max_iters=50000)
