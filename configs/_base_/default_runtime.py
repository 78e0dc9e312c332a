# What every task shares; the host's scope is set by default_runtime_seg.py
# and default_runtime_cls.py.
custom_imports = dict(
    imports=['fma_vision.models', 'fma_vision.datasets'],
    allow_failed_imports=False)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# A resumed run draws what a whole one draws.
default_hooks = dict(seeds=dict(type='fma_vision.SeedHook'))
log_level = 'INFO'
load_from = None
resume = False
