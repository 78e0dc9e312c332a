# Fine-tuning at a higher resolution as in the Swin paper: 30 epochs at a
# constant learning rate of 1e-5 for a total batch of 1024, next to no decay.
_base_ = './imagenet_bs1024_adamw_300e.py'

optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True)]
train_cfg = dict(max_epochs=30)
