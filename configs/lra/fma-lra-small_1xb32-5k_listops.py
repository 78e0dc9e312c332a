_base_ = [
    '../_base_/models/fma_sequence.py', '../_base_/datasets/listops.py',
    '../_base_/schedules/schedule_lra.py', '../_base_/default_runtime_lra.py'
]

model = dict(net=dict(vocab_size=15, max_length=2000))
