# A masked language model: it sees both sides, and one token more than the
# data has, the mask.
_base_ = './fma_lm.py'

model = dict(
    net=dict(
        vocab_size=257,
        causal=False,
        head=dict(objective='masked', mask_ratio=0.15)))
