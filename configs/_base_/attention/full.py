# All tokens.
attention = dict(
    backbone=dict(_delete_=True, type='FullAttention'),
    net=dict(_delete_=True, type='FullAttention1D'))
