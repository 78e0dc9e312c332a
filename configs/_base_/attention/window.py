# Swin's shifted windows.
attention = dict(
    backbone=dict(_delete_=True, type='WindowAttention', window_size=8))
