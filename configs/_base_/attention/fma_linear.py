# FMA with pooled queries, the linear variant, for what is FMA already.
attention = dict(backbone=dict(pool_queries=True), net=dict(pool_queries=True))
