# The first three stages of FMATransformer nano for images of 28 to 64
# pixels: with patches of 1 or 2 pixels the last map has 4 to 8 tokens a side.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='fma_vision.FMATransformer',
        arch='nano',
        patch_size=2,
        attn=dict(type='FMAttention2D', cell_size=4),
        out_indices=(2, ),
        drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
