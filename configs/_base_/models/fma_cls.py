# FMA-T as an image classifier with 1000 classes. The sizes of the family:
#   arch    widths                 head in_channels
#   tiny    96, 192, 384, 768      768
#   small   96, 192, 384, 768      768 (deeper third stage)
#   base    128, 256, 512, 1024    1024
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fma_vision.FMATransformer',
        arch='tiny',
        attn=dict(type='FMAttention2D', cell_size=4),
        drop_path_rate=0.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        # The backbone initialises itself; the head like a Swin head.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.),
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]))
