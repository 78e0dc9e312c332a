"""Whole backbones on a GPU, FMA-T against others: time and memory.

    python benchmarks/gpu_models.py

Those of timm, with random weights, under bfloat16 autocast. FMA is checked
first, against the PyTorch backend.
"""
import argparse
import sys
from typing import List, Optional

import timm
import torch
from measure import Call, attempt, compare, parser, record, settle, try_calls
from torch import Tensor, nn

import fma_vision  # noqa: F401  registers its models with timm

LINEAR = dict(type='FMAttention2D', cell_size=4, pool_queries=True)
# Arguments for timm; ratios are to the first. DeiT-S is ViT-S with another
# recipe. Where there is a size of images, it is that of the benchmark.
MODELS = {
    'Swin-T': dict(model_name='swin_tiny_patch4_window7_224', img_size=None),
    'FMA-T': dict(model_name='fma_tiny'),
    'FMA-T linear': dict(model_name='fma_tiny', attn=LINEAR),
    'ConvNeXt-T': dict(model_name='convnext_tiny'),
    'ViT-S': dict(model_name='deit_small_patch16_224', img_size=None),
}
# Side and batch, about as many pixels each; what matters most comes first.
SIZES = ((512, 16), (2048, 1), (224, 64), (1024, 4))
# Of the norm of the output, after twelve blocks in bfloat16.
TOLERANCE = 5e-2


def build(name: str, side: int, args: argparse.Namespace) -> nn.Module:
    """A model for images of a side, on the device."""
    options = dict(MODELS[name], num_classes=0)
    if 'img_size' in options:
        options['img_size'] = side
    torch.manual_seed(args.seed)
    model = timm.create_model(**options).to(args.device)
    return set_backend(model, args.backend)


def set_backend(model: nn.Module, backend: str) -> nn.Module:
    for module in model.modules():
        if hasattr(module, 'backend'):
            module.backend = backend
    return model


def one_pass(model: nn.Module, images: Tensor, mode: str) -> Call:
    """``inference``, or ``training``: forward and backward pass."""
    autocast = torch.autocast(images.device.type, torch.bfloat16)

    def inference() -> Tensor:
        with torch.no_grad(), autocast:
            return model.forward_features(images)

    def training() -> None:
        with autocast:
            out = model.forward_features(images)
        out.float().mean().backward()
        model.zero_grad(set_to_none=True)

    model.train(mode == 'training')
    return dict(inference=inference, training=training)[mode]


def check(model: nn.Module, images: Tensor, backend: str) -> None:
    """Refuses a model whose output depends on the backend.

    Raises:
        ArithmeticError: It does, by more than rounding.
    """
    run = one_pass(model, images, 'inference')
    found = run().float()
    set_backend(model, 'torch')
    expected = run().float()
    set_backend(model, backend)
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise ArithmeticError(f'off the PyTorch backend by {error:.1e} of '
                              f'the norm, allowed are {TOLERANCE:.0e}')


def measure(side: int, batch: int, mode: str,
            args: argparse.Namespace) -> dict:
    """One row: all models that run, in turns."""
    images = torch.randn(batch, 3, side, side, device=args.device)
    calls, reasons = {}, {}
    for name in MODELS:
        model, reason = attempt(build, name, side, args, device=args.device)
        if reason is None and name.startswith('FMA'):
            reason = attempt(
                check, model, images[:1], args.backend, device=args.device)[1]
        if reason is None:
            calls[name] = one_pass(model, images, mode)
        else:
            reasons[name] = reason
    peaks, failed = try_calls(calls, args.device)
    reasons.update(failed)
    row = dict(
        shape=[side, side],
        batch=batch,
        mode=mode,
        peak_bytes=peaks,
        reasons=reasons)
    if not peaks:
        return dict(row, seconds={}, ratio={})
    entry = row, {name: calls[name] for name in peaks}
    return compare([entry], args.repeats, args.least, args.device)[0]


def main(argv: Optional[List[str]] = None) -> int:
    """Measures all; 1 if FMA failed anywhere."""
    args = settle(parser(__doc__).parse_args(argv), 'backbones')
    rows = record('models',
                  (measure(side, batch, mode, args)
                   for side, batch in (((64, 1), ) if args.quick else SIZES)
                   for mode in ('training', 'inference')), args)
    return int(
        any(name.startswith('FMA') for row in rows for name in row['reasons']))


if __name__ == '__main__':
    sys.exit(main())
