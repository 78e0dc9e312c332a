#!/usr/bin/env python
"""Turns a training checkpoint into a file to hand out.

    python tools/model_converters/publish_model.py \\
        work_dirs/RUN/best.pth demo/weights/fma-nano.pth --fp16

writes ``demo/weights/fma-nano-XXXXXXXX.pth`` with the first eight digits of
the file's SHA-256, as PyTorch Hub checks them. Kept are the weights, the
class names and palette, the config and the step count; optimiser, schedulers
and log history are dropped. The result loads with ``weights_only=True``.

Runs with weight averaging save the average as their weights and the last
step's weights beside it: the average is published, `--ema` insists on that
and `--raw` asks for the last step's.
"""

import argparse
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from torch import Tensor, nn

from fma_vision.engine import UserError, read_checkpoint, run_tool
from fma_vision.engine.build import build_model, load_model_config
from fma_vision.engine.files import write_bytes

# What a later user needs: names to show, the model's config, how far it ran.
KEPT_META = ('dataset_meta', 'cfg', 'epoch', 'iter', 'seed',
             'mmengine_version')
# Prefixes that wrappers put before every name.
WRAPPERS = ('module.', '_orig_mod.')
# Statistics whose range or precision float16 does not hold.
KEPT_PRECISION = ('running_mean', 'running_var')
DIGITS = 8


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Strip a training checkpoint for publishing')
    parser.add_argument('checkpoint', help='file saved by the runner')
    parser.add_argument(
        'out', help='file to write; a hash is put before its suffix .pth')
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '--ema',
        action='store_true',
        help='fail unless the checkpoint holds averaged weights')
    which.add_argument(
        '--raw',
        action='store_true',
        help='publish the weights of the last step, not their average')
    parser.add_argument(
        '--fp16', action='store_true', help='store weights in half precision')
    parser.add_argument(
        '--config',
        help='also build this config and check that every weight fits')
    args = parser.parse_args(argv)
    if Path(args.out).suffix != '.pth':
        parser.error('argument out: a name that ends in .pth is allowed, got '
                     f'{args.out!r}')
    return args


def read_training_checkpoint(path: str) -> Dict[str, Any]:
    """Reads a training checkpoint.

    Args:
        path: The file.

    Returns:
        Its content, with ``state_dict``.

    Raises:
        UserError: The file is missing, damaged, no checkpoint or holds code.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(
            content.get('state_dict'), Mapping):
        raise UserError(f'checkpoint {path} holds no state_dict')
    return content


def unwrap(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    for prefix in WRAPPERS:
        # torch.compile of a part leaves its mark inside the name, too.
        name = name.removeprefix(prefix)
    return name.replace('._orig_mod.', '.')


def select_weights(content: Mapping[str, Any],
                   ema: bool = False,
                   raw: bool = False) -> Dict[str, Tensor]:
    """Picks the weights to publish out of a checkpoint.

    Args:
        content: As :func:`read_training_checkpoint` returns it.
        ema: Insist on averaged weights.
        raw: The last step's weights instead of their average.

    Returns:
        Tensors by their plain names.

    Raises:
        UserError: Averaging was asked for, and the run had none.
    """
    weights = {
        unwrap(name): value
        for name, value in content['state_dict'].items()
    }
    # mmengine's EMAHook swaps when it saves: the average is in state_dict,
    # the last step's weights are in ema_state_dict under `module.`.
    last = content.get('ema_state_dict')
    if (ema or raw) and last is None:
        option = '--ema' if ema else '--raw'
        raise UserError(f'{option}: the checkpoint has no ema_state_dict; '
                        'its run did not average weights')
    if raw:
        for name, value in last.items():
            if name.startswith('module.'):
                weights[unwrap(name)] = value
    return weights


def convert(name: str, value: Tensor, fp16: bool) -> Tensor:
    """A tensor as it is stored.

    Args:
        name: Its name, for messages.
        value: The tensor.
        fp16: Store floating-point weights in half precision.

    Returns:
        A compact copy on the CPU.

    Raises:
        UserError: It is not finite, or too large for half precision.
    """
    # A clone holds its own values only, not the storage it was cut from.
    value = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not value.is_floating_point():
        return value
    if not torch.isfinite(value).all():
        raise UserError(f'weight {name} holds values that are not finite')
    if fp16 and not name.endswith(KEPT_PRECISION):
        value = value.half()
        if not torch.isfinite(value).all():
            raise UserError(f'--fp16: weight {name} holds values beyond '
                            f'{torch.finfo(torch.float16).max:.0f}')
    return value


def plain(value: Any) -> Any:
    """Meta data in types that ``weights_only=True`` loads."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, 'tolist'):  # arrays and numbers of numpy, tensors
        return plain(value.tolist())
    return str(value)


def clean_config(text: str) -> str:
    """A dumped config without the places of the machine it ran on."""
    text = re.sub(
        r'^(work_dir|load_from|resume)\s*=\s*[^\n]*\n?',
        '',
        text,
        flags=re.MULTILINE)
    # What a part began from is in the weights by now.
    return re.sub(r"init_cfg=dict\([^()]*type='Pretrained'[^()]*\)",
                  'init_cfg=None', text)


def select_meta(content: Mapping[str, Any]) -> Dict[str, Any]:
    """The meta data to publish; classes and palette as plain lists."""
    meta = content.get('meta') or {}
    kept = {key: plain(meta[key]) for key in KEPT_META if key in meta}
    if isinstance(kept.get('cfg'), str):
        kept['cfg'] = clean_config(kept['cfg'])
    return kept


def verify(data: bytes, state: Mapping[str, Tensor]) -> None:
    """Loads bytes back and compares every weight.

    Args:
        data: The file's content.
        state: The weights it must hold.

    Raises:
        RuntimeError: They differ.
    """
    loaded = torch.load(
        io.BytesIO(data), map_location='cpu', weights_only=True)['state_dict']
    same = loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], state[name])
        and loaded[name].dtype == state[name].dtype for name in state)
    if not same:
        raise RuntimeError('the written weights do not read back the same')


def check_weights(model: nn.Module, state: Mapping[str, Tensor],
                  config: str) -> None:
    """Refuses weights that are not exactly those of a model.

    Args:
        model: The model built from ``config``.
        state: The weights to publish.
        config: The config's name, for messages.

    Raises:
        UserError: A weight is missing, unknown or of another shape.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            where = 'the checkpoint' if name in own else 'the model'
            raise UserError(f'--config {config}: {where} has no {name}')
        if state[name].shape != own[name].shape:
            raise UserError(f'--config {config}: {name} has shape '
                            f'{tuple(state[name].shape)}, the model needs '
                            f'{tuple(own[name].shape)}')


def publish(args: argparse.Namespace) -> Path:
    """Writes the published file.

    Args:
        args: From :func:`parse_args`.

    Returns:
        Its path, with the hash in its name. On an error nothing is written.

    Raises:
        UserError: The checkpoint cannot be published as asked.
    """
    content = read_training_checkpoint(args.checkpoint)
    weights = select_weights(content, args.ema, args.raw)
    state = {
        name: convert(name, value, args.fp16)
        for name, value in weights.items()
    }
    if args.config:
        # Before anything is written: a wrong pair must not be published.
        model = build_model(load_model_config(args.config))
        check_weights(model, state, args.config)
    buffer = io.BytesIO()
    torch.save(dict(meta=select_meta(content), state_dict=state), buffer)
    data = buffer.getvalue()
    verify(data, state)
    out = Path(args.out)
    digest = hashlib.sha256(data).hexdigest()[:DIGITS]
    path = write_bytes(out.with_name(f'{out.stem}-{digest}.pth'), data)
    verify(path.read_bytes(), state)
    return path


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    path = publish(args)
    before = Path(args.checkpoint).stat().st_size / 2**20
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MiB, '
          f'from {before:.1f} MiB')


if __name__ == '__main__':
    run_tool(main)
