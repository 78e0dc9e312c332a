# Minutes on a CPU: a model of about 0.8 million parameters on characters.
_base_ = './fma-lm_1xb32-20k_books-1k.py'

model = dict(
    net=dict(
        vocab_size=65,
        embed_dims=128,
        depth=4,
        num_heads=4,
        drop_rate=0.1,
        attn=dict(cell_size=32, rank=2)))

# Tiny Shakespeare: 1.1 M characters, 65 symbols; its last tenth validates.
source = dict(
    data_root='data/tinyshakespeare',
    path='input.txt',
    length=256,
    vocabulary='characters',
    vocab_size=65)
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=16, dataset=dict(split='train', **source), **workers)
val_dataloader = dict(dataset=dict(split='valid', **source), **workers)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3, betas=(0.9, 0.99)))
train_cfg = dict(max_iters=1000, val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250))
