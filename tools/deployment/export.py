#!/usr/bin/env python
"""Exports a config's model with its weights, and checks the file.

    python tools/deployment/export.py CONFIG CHECKPOINT \\
        --format onnx --shape 512 512 --out seg.onnx
    python tools/deployment/export.py CONFIG CHECKPOINT \\
        --format pt2 --shape 512 512 --out seg.pt2

What enters is what the model's data preprocessor gives: normalised images
``[1, channels, H, W]``, or tokens ``[1, N]`` of a text. What comes out are
logits: of classes, of each pixel or of each token.

``onnx`` is a file for onnxruntime and others, at the one size given; ``pt2``
is for ``torch.export.load`` with this package, at any size (of images from 64
pixels a side on). The file is read again and compared with the model, ``pt2``
at a size that the exporter has not seen, too. Large models take minutes.
"""

import argparse
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from mmengine.config import Config
from torch import Tensor, nn

from fma_vision.engine import (UserError, check_weights, read_checkpoint,
                               run_tool, select_state_dict)
from fma_vision.engine.arguments import add_config_options, add_shape
from fma_vision.engine.build import (build_model, input_channels, input_shape,
                                     is_language_model, load_model_config,
                                     model_settings)
from fma_vision.engine.errors import one_line
from fma_vision.engine.files import write_bytes

# Of the logits' largest value, or of 1 where all are smaller.
TOLERANCE = 1e-4
LEAST_SIDE, LEAST_LENGTH = 64, 2


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Export a model to ONNX or torch.export, and check it')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='onnx',
        help='onnx: one size, for any runtime; pt2: free sizes, for PyTorch '
        'with this package; default: onnx')
    add_shape(parser)
    parser.add_argument(
        '--out', help='file to write; default: CHECKPOINT.FORMAT, here')
    add_config_options(parser)
    return parser.parse_args(argv)


class Deployed(nn.Module):
    """A model of a toolbox as a function of one tensor.

    Args:
        model (nn.Module): Classifier, segmentor or language model, built.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.segments = hasattr(model, 'encode_decode')

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]``, ``[B, classes, H, W]``, ``[B, N, V]``."""
        if self.segments:
            return self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return self.model(x, mode='tensor')


def least_side(cfg: Config) -> int:
    """From which size on a program with free sizes is right."""
    return LEAST_LENGTH if is_language_model(cfg) else LEAST_SIDE


def read_model(args: argparse.Namespace) -> Tuple[Deployed, List[Tensor]]:
    """The model with its weights, an input and one of another size.

    Raises:
        UserError: Config, weights and shape do not fit together.
    """
    cfg = load_model_config(args.config, args.cfg_options, args.base)
    shape = input_shape(cfg, args.shape)
    least = least_side(cfg)
    if args.format == 'pt2' and min(shape) < least:
        raise UserError(f'--format pt2 is for sizes from {least} on, got '
                        f'--shape {" ".join(map(str, shape))}')
    state = select_state_dict(
        read_checkpoint(args.checkpoint), args.checkpoint)
    model = build_model(cfg)
    check_weights(model, state, args.checkpoint)
    model.load_state_dict(state)
    draw = torch.Generator().manual_seed(0)
    if is_language_model(cfg):
        size = model_settings(cfg)['net']['vocab_size']
        # The other text is shorter: learned positions end somewhere.
        inputs = [
            torch.randint(size, (1, length), generator=draw)
            for length in (shape[0], shape[0] // 2 + 1)
        ]
    else:
        other = [side + side // 3 + 1 for side in shape]
        inputs = [
            torch.randn(1, input_channels(cfg), *sides, generator=draw)
            for sides in (shape, other)
        ]
    return Deployed(model), inputs


# ----------------------------------------------------------------- formats
def to_onnx(model: nn.Module, x: Tensor) -> bytes:
    """An ONNX file for inputs of one shape."""
    program = torch.onnx.export(
        model, (x, ),
        dynamo=True,
        verbose=False,
        input_names=['input'],
        output_names=['logits'])
    return program.model_proto.SerializeToString()


def run_onnx(data: bytes) -> Callable[[Tensor], Tensor]:
    """What onnxruntime makes of the file."""
    import onnxruntime
    session = onnxruntime.InferenceSession(
        data, providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(
        session.run(None, {'input': x.numpy()})[0])


def to_pt2(model: nn.Module, x: Tensor) -> bytes:
    """A program of torch.export whose sizes are free."""
    # Where a size ends, such as that of learned positions, is found out.
    least = LEAST_LENGTH if x.ndim == 2 else LEAST_SIDE
    free = dict.fromkeys(
        range(x.ndim // 2, x.ndim), torch.export.Dim.DYNAMIC(min=least))
    program = torch.export.export(
        model, (x, ), dynamic_shapes=(free, ), strict=True)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def run_pt2(data: bytes) -> Callable[[Tensor], Tensor]:
    """What PyTorch makes of the file."""
    return torch.export.load(io.BytesIO(data)).module()


FORMATS = {'onnx': (to_onnx, run_onnx), 'pt2': (to_pt2, run_pt2)}


def export(kind: str, model: nn.Module, x: Tensor) -> bytes:
    """A file's content.

    Raises:
        UserError: A package is missing, or the model does not export.
    """
    logging.disable(logging.WARNING)  # the exporters' talk about each node
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return FORMATS[kind][0](model, x)
    except ImportError as error:
        raise UserError(f'--format {kind} needs the package {error.name}: pip '
                        'install onnx onnxscript onnxruntime') from error
    except Exception as error:  # whatever an exporter meets in a model
        raise UserError(f'--format {kind}: the model does not export at '
                        f'{list(x.shape)}: {one_line(error)}') from error
    finally:
        logging.disable(logging.NOTSET)


def compare(model: nn.Module, run: Callable[[Tensor], Tensor],
            x: Tensor) -> float:
    """The largest difference of the logits.

    Raises:
        UserError: It is beyond rounding.
    """
    expected = model(x)
    error = (run(x) - expected).abs().max().item()
    # False for NaN.
    if not error <= TOLERANCE * max(expected.abs().max().item(), 1):
        raise UserError(f'the exported model differs by {error:.1e} at '
                        f'{list(x.shape)}; nothing is written')
    return error


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    out = Path(args.out or f'{Path(args.checkpoint).stem}.{args.format}')
    model, inputs = read_model(args)
    with torch.no_grad():
        data = export(args.format, model, inputs[0])
        run = FORMATS[args.format][1](data)
        # An ONNX file has one size.
        seen = inputs if args.format == 'pt2' else inputs[:1]
        errors = [compare(model, run, x) for x in seen]
    write_bytes(out, data)
    print(f'{out}: {len(data) / 2**20:.1f} MiB')
    for x, error in zip(seen, errors):
        print(f'input {list(x.shape)}: largest difference {error:.1e}')


if __name__ == '__main__':
    run_tool(main)
