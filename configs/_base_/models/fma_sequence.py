# A classifier of token sequences of about 0.6 million parameters. The map from
# children to parents is shared by all levels, so that padding, which may add
# levels, brings no weights of its own.
model = dict(
    type='fma_vision.SequenceClassifierTask',
    net=dict(
        type='fma_vision.FMASequenceClassifier',
        vocab_size=256,
        num_classes=10,
        embed_dims=128,
        depth=2,
        num_heads=4,
        mlp_ratio=3.,
        positions='learned',
        max_length=2000,
        drop_rate=0.1,
        attn=dict(
            type='FMAttention1D',
            cell_size=32,
            rank=2,
            summaries=dict(type='hierarchical', shared=True))))
