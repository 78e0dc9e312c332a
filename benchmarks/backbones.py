"""Whole backbones: time, memory and precision, beside others.

    python benchmarks/backbones.py                    # a CPU, half an hour
    python benchmarks/backbones.py --parts inference  # some; the others stay
    python benchmarks/backbones.py --quick            # a rehearsal
    python benchmarks/backbones.py --device cuda      # a GPU: part gpu
    python benchmarks/tables.py                       # then: the tables

What is compared runs in turns in one process, by ``measure.compare``. Models
have random weights and return their last map; ``precision`` also tests trained
ones, and ``camvid`` trains as ``tools/train.py`` does: with the sets under
``data/``, from the root of a checkout. Before FMA-T is timed, its outputs and
gradients must be those of the naive reference on a small image, and those of
the PyTorch backend at the size itself; the others must be finite.

A training step is forward, backward and AdamW, stochastic depth as configured.
``memory`` and ``large`` run in processes of their own that give memory back at
once; bytes are beyond weights, optimizer state and input. ``gpu`` takes its
models from timm; each may fail alone.
"""
import re
import runpy
import sys
import warnings
from argparse import Namespace
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import timm
import torch
from measure import (Call, compare, each, parser, peak_resident, run_parts,
                     summary)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from fma_kernels.testing import missing_compiler
from fma_vision.engine import UserError, trained_runner
from fma_vision.engine.build import build_model, load_model_config
from fma_vision.engine.precision import TOLERANCES, autocast, relative_error
from fma_vision.layers import FMAttention2D

ROOT = Path(__file__).resolve().parents[1]
FMA, SWIN = 'FMA-T', 'Swin-T'
# A config, and what is changed in its backbone: maps, and of small images too.
CONFIGS = {
    FMA: (f'{ROOT}/configs/imagenet/fma-tiny_16xb64_in1k-224px.py', {}),
    SWIN: ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
           dict(pad_small_map=True)),
    'ConvNeXt-T': ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
                   dict(gap_before_final_norm=False)),
}
MODELS = (*CONFIGS, 'ViT-S/16')
Maps = List[Tensor]
# Several levels of cells with ragged borders, yet cheap for the reference.
SMALL = (1, 3, 136, 120)
# What is tested at each precision: config, weights, metric.
TRAINED = (
    ('camvid/fma-nano-rotary_fpn_1xb4-1k_camvid-240x320.py',
     'fma-nano-rotary_fpn_camvid-c68317e1.pth', 'mIoU'),
    ('tiny_imagenet100/fma-nano-rotary-p4_1xb64-4k-mild_tiny-in100-64px.py',
     'fma-nano-rotary-p4_tiny-in100-8cbeed4d.pth', 'accuracy/top1'),
)


# ------------------------------------------------------------------ models
@lru_cache(maxsize=None)
def build(name: str) -> nn.Module:
    """One of MODELS, in evaluation mode."""
    if name not in CONFIGS:  # all tokens of its last block
        return timm.create_model(
            'vit_small_patch16_224',
            dynamic_img_size=True,
            num_classes=0,
            global_pool='').eval()
    config, changes = CONFIGS[name]
    return build_model(load_model_config(config), changes).backbone


def last(model: nn.Module, image: Tensor) -> Tensor:
    out = model(image)
    return out if isinstance(out, Tensor) else out[-1]


def weights_of(out: Tensor) -> Tensor:
    """A linear loss's: the norm before hides what a plain mean would tell."""
    same = torch.Generator().manual_seed(0)
    return torch.randn(out.shape, generator=same).to(out)


def inference_call(model: nn.Module, image: Tensor) -> Call:
    model.eval()
    return partial(last, model, image)


def training_call(model: nn.Module, image: Tensor) -> Call:
    """One step of a user's training, without data, head and loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=.05)
    weights = weights_of(last(model, image))

    @torch.enable_grad()
    def step() -> None:
        (last(model, image) * weights).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


CALLS = dict(inference=inference_call, training=training_call)


def row(mode: str, image: Tensor, **more: object) -> dict:
    """What identifies a row of results."""
    batch, _, *pixels = image.shape
    return dict(mode=mode, pixels=pixels, batch=batch, **more)


def image_of(args: Namespace, side: int, batch: int = 1) -> Tensor:
    """Square ones; an eighth of the side in a rehearsal."""
    side = side // 8 if args.quick else side
    return torch.randn(batch, 3, side, side)


# ------------------------------------------------------------------ checks
@contextmanager
def backend(model: nn.Module, name: str) -> Iterator[None]:
    """The attention of a model on another backend."""
    layers = [x for x in model.modules() if isinstance(x, FMAttention2D)]
    before = [layer.backend for layer in layers]
    for layer in layers:
        layer.backend = name
    try:
        yield
    finally:
        for layer, own in zip(layers, before):
            layer.backend = own


def results(model: nn.Module, image: Tensor, mode: str) -> Maps:
    """The last map, and in training the gradients of all weights."""
    model.eval()  # nothing is drawn
    if mode == 'inference':
        return [last(model, image)]
    with torch.enable_grad():
        out = last(model, image)
        loss = (out * weights_of(out)).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
    return [out.detach(), torch.cat([x.flatten() for x in grads])]


def agree(what: str,
          found: Maps,
          reference: Maps,
          dtype: str = 'float32') -> float:
    """The largest error, relative to the largest entry."""
    error = max(map(relative_error, found, reference))
    if not error <= TOLERANCES[dtype]:
        raise RuntimeError(f'FMA-T is wrong: {error:.1e} from {what}; nothing '
                           'was timed')
    return error


def check(mode: str, image: Tensor) -> Dict[str, float]:
    """The errors of FMA-T, all of them rounding."""
    errors, model = {}, build(FMA)
    for name, x in (('naive', torch.randn(SMALL)), ('torch', image)):
        found = results(model, x, mode)
        with backend(model, name):
            reference = results(model, x, mode)
        errors[name] = agree(f'the {name} backend', found, reference)
    return errors


def calls_of(names: Sequence[str], mode: str,
             image: Tensor) -> Dict[str, Call]:
    """Models to time, if their numbers are numbers."""
    for name in names:
        if not results(build(name), image, 'inference')[0].isfinite().all():
            raise RuntimeError(f'{name} gives numbers that are not finite')
    return {name: CALLS[mode](build(name), image) for name in names}


# ------------------------------------------------------------------- parts
TWINS = FMA, SWIN
SIDES = 512, 1024, 2048
STEPS = (224, 8), (512, 2)  # side and batch


def measured(args: Namespace, mode: str, image: Tensor, errors: dict,
             calls: Dict[str, Call]) -> dict:
    """A row of calls in turns; ratios are over the first."""
    entry = row(mode, image, errors=errors), calls
    return compare([entry], args)[0]


def beside(args: Namespace, names: Sequence[str], mode: str, *size:
           int) -> dict:
    """FMA-T and others."""
    image = image_of(args, *size)
    errors = check(mode, image)
    return measured(args, mode, image, errors, calls_of(names, mode, image))


def inference(args: Namespace) -> Iterator[dict]:
    """One image, of growing size."""
    for side in SIDES:
        yield beside(args, MODELS, 'inference', side, 1)


def training(args: Namespace) -> List[dict]:
    """A step, beside the twin in Swin's widths."""
    return [beside(args, TWINS, 'training', *step) for step in STEPS]


def memory(args: Namespace) -> Iterator[dict]:
    """Bytes that the process grew by at the most."""
    cases = [(MODELS, 'inference', side, 1) for side in SIDES]
    cases += [(TWINS, 'training', *step) for step in STEPS]
    for names, mode, *size in cases:
        image = image_of(args, *size)
        found = row(mode, image, process={})
        for name, run in calls_of(names, mode, image).items():
            run()
            found['process'][name] = peak_resident(run)
        yield found


def large(args: Namespace) -> List[dict]:
    """An image of 4096 x 4096 pixels as a whole.

    FMA-T is checked at 1024: the PyTorch backend takes half an hour here.
    """
    errors = check('inference', image_of(args, 1024))
    image = image_of(args, 4096)
    run = inference_call(build(FMA), image)
    process = {FMA: peak_resident(run)}
    what = row('inference', image, errors=errors, process=process)
    once = Namespace(**{**vars(args), 'repeats': 1, 'least': 0})
    return compare([(what, {FMA: run})], once)


def compiled(args: Namespace) -> List[dict]:
    """FMA-T through ``torch.compile``, in one graph."""
    if missing_compiler():
        return [dict(reason=missing_compiler())]
    rows, model = [], build(FMA)
    for mode, *size in (('inference', 512, 1), ('training', 224, 2)):
        image = image_of(args, *size)
        torch.compiler.reset()
        fast = torch.compile(model, dynamic=False, fullgraph=True)
        errors = check(mode, image)
        errors['compiled'] = agree('its compiled self',
                                   results(fast, image, mode),
                                   results(model, image, mode))
        calls = dict(
            eager=CALLS[mode](model, image), compiled=CALLS[mode](fast, image))
        calls['compiled']()  # compiles once more, for training
        rows.append(measured(args, mode, image, errors, calls))
    return rows


def variants(model: nn.Module) -> Dict[str, Tuple[nn.Module, str]]:
    """A model and a dtype of autocast for each precision."""
    with warnings.catch_warnings():  # of what follows this in later releases
        warnings.simplefilter('ignore')
        int8 = torch.ao.quantization.quantize_dynamic(
            model, {nn.Linear}, dtype=torch.qint8)
    half = model, 'bfloat16'
    return dict(
        float32=(model, 'float32'), bfloat16=half, int8=(int8, 'float32'))


def under(dtype: str, run: Callable, *args: object, device='cpu') -> object:
    with autocast(device, dtype):
        return run(*args)


def precision(args: Namespace) -> List[dict]:
    """FMA-T's time, and the scores of trained weights."""
    image = image_of(args, 512)
    errors, calls = check('inference', image), {}
    for name, (model, dtype) in variants(build(FMA).eval()).items():
        calls[name] = partial(under, dtype, last, model, image)
        errors[name] = relative_error(calls[name](), calls['float32']())
    return [
        measured(args, 'inference', image, errors, calls),
        *(score(args, *trained) for trained in TRAINED)
    ]


def score(args: Namespace, config: str, weights: str, metric: str) -> dict:
    """What trained weights reach, in per cent."""
    found: Dict[str, float] = {}
    options = {'test_dataloader.dataset.indices': 2} if args.quick else {}
    with TemporaryDirectory() as folder:
        try:
            runner = trained_runner(f'{ROOT}/configs/{config}',
                                    f'{ROOT}/demo/weights/{weights}', 'cpu',
                                    folder, options)
        except UserError as error:  # the data is not there
            return dict(weights=weights, reason=str(error))
        for name, (model, dtype) in variants(runner.model).items():
            runner.model = model
            # The loop has an autocast of its own: bfloat16 on a CPU.
            runner.test_loop.fp16 = dtype == 'bfloat16'
            found[name] = float(runner.test()[metric])
        images = len(runner.test_loop.dataloader.dataset)
    return dict(weights=weights, metric=metric, images=images, score=found)


@torch.enable_grad()
def camvid(args: Namespace) -> List[dict]:
    """Iterations of training on CamVid, data included, in turns."""
    tool = runpy.run_path(f'{ROOT}/tools/train.py')
    turns, iterations, batch = (1, 3, 1) if args.quick else (3, 22, 4)
    times: Dict[str, List[float]] = {'fma-nano': [], 'swin-nano': []}
    for turn, name in product(range(turns), times):
        config = f'configs/camvid/{name}_fpn_1xb4-400_camvid-240x320.py'
        with TemporaryDirectory() as folder:
            options = tool['parse_args']([
                f'{ROOT}/{config}', '--work-dir', folder, '--no-validate',
                '--device', 'cpu', '--cfg-options',
                f'train_cfg.max_iters={iterations}',
                f'train_dataloader.batch_size={batch}'
            ])
            try:
                runner = tool['train'](options)
            except UserError as error:  # the data is not there
                return [dict(reason=str(error))]
        found = runner.message_hub.get_scalar('train/time').data[0]
        times[name] += map(float, found[2:])  # the first are slow
    what = row('training', torch.empty(batch, 3, 240, 320))
    return [summary(what, times)]


# How the profiler's names of each kind of work begin.
KINDS = {
    'linear layers': r'aten::(addmm|mm|linear)|autograd::.*: (Addmm|Mm)',
    'attention': r'fma_kernels::|Forward|Backward',
    'GELU': r'aten::gelu',
    'norms': r'aten::(native_)?layer_norm',
    'convolutions': r'aten::(_|mkldnn_|thnn_)?conv',
    'copies': r'aten::(copy_|clone|contiguous|cat|constant_pad|fill_)',
    'optimizer': r'Optimizer\.',
}


def shares_of(run: Call) -> Dict[str, float]:
    """Kinds of work over the CPU time of the calling thread.

    All inside attention or the optimizer, else what the innermost says.
    """
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    found = dict.fromkeys((*KINDS, 'other'), 0.)
    for event in record.events():
        kinds, time = [], event.self_cpu_time_total
        while event is not None:
            kinds += [k for k, x in KINDS.items() if re.match(x, event.name)]
            event = event.cpu_parent
        whole = [k for k in kinds if k in ('attention', 'optimizer')]
        found[(whole or kinds or ['other'])[0]] += time
    return {name: x / sum(found.values()) for name, x in found.items()}


def profile(args: Namespace) -> Iterator[dict]:
    """Where the time goes, on the C kernels and on PyTorch alone."""
    for mode, *size in (('inference', 512, 1), ('training', 224, 8)):
        image = image_of(args, *size)
        errors, run = check(mode, image), CALLS[mode](build(FMA), image)
        calls = {x: backend(build(FMA), x)(run) for x in ('native', 'torch')}
        found = measured(args, mode, image, errors, calls)
        yield dict(found, shares={k: shares_of(x) for k, x in calls.items()})


# ------------------------------------------------------------------- a GPU
LINEAR = dict(type='FMAttention2D', cell_size=4, pool_queries=True)
# Arguments for timm; ratios are over the first. DeiT-S is ViT-S with another
# recipe. Where there is a size of images, it is that of the benchmark.
TIMM = {
    SWIN: dict(model_name='swin_tiny_patch4_window7_224', img_size=None),
    FMA: dict(model_name='fma_tiny'),
    f'{FMA} linear': dict(model_name='fma_tiny', attn=LINEAR),
    'ConvNeXt-T': dict(model_name='convnext_tiny'),
    'ViT-S/16': dict(model_name='deit_small_patch16_224', img_size=None),
}
# Side and batch, about as many pixels each; what matters most comes first.
SIZES = (512, 16), (2048, 1), (224, 64), (1024, 4)


def timm_call(name: str, images: Tensor, mode: str, attention: str) -> Call:
    """One of TIMM; FMA's attention is on the backend of a name, and right."""
    options = dict(TIMM[name], num_classes=0, global_pool='')
    if 'img_size' in options:
        options['img_size'] = images.shape[-1]
    model = timm.create_model(**options).to(images.device)
    # Forward alone: autocast is not for the backward pass.
    model.forward = partial(
        under, 'bfloat16', model.forward, device=images.device)
    found = {}
    for place in {attention, 'torch'} if name.startswith('FMA') else ():
        with backend(model, place):
            found[place] = results(model, images[:1], 'inference')
    if found:
        agree('the torch backend', found[attention], found['torch'],
              'bfloat16')
    with backend(model, attention):
        run = CALLS[mode](model, images)
    return backend(model, attention)(run)


def gpu(args: Namespace) -> Iterator[dict]:
    """A forward pass and a step; FMA-T against others, bfloat16 autocast."""
    sizes = ((64, 1), ) if args.quick else SIZES
    for (side, batch), mode in product(sizes, ('training', 'inference')):
        images = torch.randn(batch, 3, side, side, device=args.device)
        builds = {
            x: partial(timm_call, x, images, mode, args.backend)
            for x in TIMM
        }
        calls, reasons = each(builds, args.device)
        what = row(mode, images, reasons=reasons)
        found, = compare([(what, calls)], args)
        for name in found['reasons'].keys() & {FMA, f'{FMA} linear'}:
            found['reason'] = f'{name}: {found["reasons"][name]}'
        yield found


PARTS = dict(
    cpu=(inference, training, memory, large, compiled, precision, camvid,
         profile),
    cuda=(gpu, ))


def main(argv: Optional[List[str]] = None) -> int:
    """Runs the parts; 1 if one could not measure what it was for."""
    return run_parts(
        parser(__doc__), 'backbone', PARTS, argv, fresh=[memory, large])


if __name__ == '__main__':
    sys.exit(main())
