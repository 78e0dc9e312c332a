# A band, in images a window, and linear far fields.
attention = dict(
    backbone=dict(_delete_=True, type='FMMformerAttention2D', kernel_size=7),
    net=dict(_delete_=True, type='FMMformerAttention1D', band=20))
