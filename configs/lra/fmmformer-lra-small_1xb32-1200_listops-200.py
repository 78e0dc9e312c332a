# The same model, schedule and data with a band and linear far fields.
_base_ = './fma-lra-small_1xb32-1200_listops-200.py'

model = dict(
    net=dict(attn=dict(_delete_=True, type='FMMformerAttention1D', band=20)))
