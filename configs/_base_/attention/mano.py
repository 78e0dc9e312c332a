# Windows on several scales.
attention = dict(
    backbone=dict(_delete_=True, type='MANOAttention', window_size=8))
