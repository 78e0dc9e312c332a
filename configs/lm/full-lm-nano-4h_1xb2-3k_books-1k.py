# Four wide heads a layer, so that two layers give the 8 x 64 of the operation
# benchmarks: the source of real queries, keys and values.
_base_ = './full-lm-nano_1xb2-3k_books-1k.py'

model = dict(net=dict(num_heads=4))
