# Fine-tunes the 224 px classifier: every weight fits, because nothing in the
# backbone depends on the image size.
_base_ = [
    '../_base_/models/fma_cls.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_bs1024_adamw_30e_finetune.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(backbone=dict(drop_path_rate=0.1))

# Where the 224 px config leaves its last epoch; no weights are published
# yet. Name another file with `--cfg-options load_from=PATH`.
load_from = 'work_dirs/fma-tiny_16xb64_in1k-224px/epoch_300.pth'
