# Expressions of less than 200 tokens, for minutes on one core; small cells, so
# that there is a far field.
_base_ = './fma-lra-small_1xb8-1600_listops.py'

data_root = 'data/listops-200'
model = dict(net=dict(attn=dict(cell_size=16)))
train_dataloader = dict(
    batch_size=32,
    sampler=dict(batch_size=32),
    dataset=dict(data_root=data_root))
train_cfg = dict(max_iters=1200)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
