# Both sides are seen, and 15 % of the characters are to be told. The model
# sees one token more than the data has, the mask.
_base_ = './fma-lm_1xb32-20k_books-1k.py'

model = dict(
    net=dict(
        vocab_size=257,
        causal=False,
        head=dict(objective='masked', mask_ratio=0.15)))
