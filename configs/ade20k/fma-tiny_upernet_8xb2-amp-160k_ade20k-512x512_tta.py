# The UPerNet segmentor tested at six scales, plain and mirrored: the softmax
# scores of the twelve views are averaged. Takes a checkpoint of the config
# without `_tta`; it is for tools/test.py only.
_base_ = './fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

model = dict(_delete_=True, type='SegTTAModel', module=_base_.model)
test_dataloader = dict(dataset=dict(pipeline=_base_.tta_pipeline))
