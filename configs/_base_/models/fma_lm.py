# A causal language model of about 5 million parameters on bytes. The map
# from children to parents is shared by all levels, so that the model runs at
# lengths it was not trained at.
model = dict(
    type='fma_vision.LanguageModelTask',
    net=dict(
        type='fma_vision.FMALanguageModel',
        vocab_size=256,
        embed_dims=256,
        depth=6,
        num_heads=8,
        positions='rotary',
        attn=dict(
            type='FMAttention1D',
            cell_size=64,
            rank=4,
            summaries=dict(type='hierarchical', shared=True))))
