"""FMA-T against Swin-T, ConvNeXt-T and ViT-S: images a second and memory.

Backbones through ``tools/analysis_tools/benchmark.py``, which checks them
first. Needs mmengine and mmpretrain, and says so where they are missing.
"""
import time
from argparse import Namespace
from typing import Any, Dict, List, Optional, Tuple

from gpu_common import ROOT, Recorder, attempt, load_file

SWIN = 'Swin-T'
MODELS = {
    'FMA-T': 'configs/imagenet/fma-tiny_16xb64_in1k-224px.py',
    'ConvNeXt-T': 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    # The same network as ViT-S, trained with DeiT's recipe.
    'ViT-S': 'mmpretrain::deit/deit-small_4xb256_in1k.py',
    SWIN: 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
}
# Side and batch: about as many pixels each. What the targets are about comes
# first: later sizes may run out of time.
FULL = ((512, 16), (2048, 1), (224, 64), (1024, 4))
TINY = ((224, 1), )


def _arguments(tool: Any, mode: str, args: Namespace) -> Namespace:
    """The tool's own command line."""
    command = [
        str(ROOT / path) if '::' not in path else path
        for path in MODELS.values()
    ]
    command += ['--part', 'backbone', '--device', args.device]
    command += ['--dtype', args.dtype, '--warmup', '1']
    command += ['--repeats', str(min(args.repeats, 7))]
    command += ['--seed', str(args.seed)]
    return tool.parse_args(command +
                           (['--backward'] if mode == 'training' else []))


def _subject(tool: Any, name: str, args: Namespace, side: int,
             backend: str) -> Any:
    """A checked backbone in the mode that ``args`` asks for."""
    path = MODELS[name]
    subject = tool.Subject(path if '::' in path else str(ROOT / path), args)
    for module in subject.part.modules():
        if hasattr(module, 'backend') and name == 'FMA-T':
            module.backend = backend
    subject.check((side, side))
    subject.name = name
    return subject


def _rows(tool: Any, subjects: Dict[str, Any], options: Namespace, mode: str,
          side: int, args: Namespace) -> List[Dict[str, Any]]:
    """One size: all that run it, in turns; a reason for each other."""
    rows, able = [], []
    for name, subject in subjects.items():
        reason: Optional[str] = subject if isinstance(subject, str) else None
        if reason is None:
            begin = time.perf_counter()
            _, reason = attempt(subject.call((side, side)), args.device)
            spent = time.perf_counter() - begin
            if not reason and spent > args.limit:
                reason = f'left out: one batch took {spent:.0f} s'
        if reason:
            rows.append(_row(name, mode, side, options.batch, reason=reason))
        else:
            able.append(subject)
    found, reason = attempt(
        lambda: tool.measure(able, (side, side), options)
        if able else [], args.device)
    if reason:
        return rows + [
            _row(s.name, mode, side, options.batch, reason=reason)
            for s in able
        ]
    last = found[-1]['config'] if found else None
    for result in found:
        name = result.pop('config')
        result.pop('samples_seconds')
        ratio = result.pop('ratio_of_medians') if last == SWIN else None
        result.pop('shape')
        rows.append(
            _row(
                name, mode, side, options.batch, ratio_to_swin=ratio,
                **result))
    return rows


def _row(name: str, mode: str, side: int, batch: int, **found) -> dict:
    return dict(
        model=name,
        config=MODELS[name],
        mode=mode,
        shape=[side, side],
        batch=batch,
        **found)


def _load() -> Tuple[Any, Optional[str]]:
    """The tool, or what is missing for it."""
    try:
        tool = load_file('tools/analysis_tools/benchmark.py')
        import mmpretrain  # noqa: F401
        return tool, None
    except ImportError as error:
        return None, f'not run: {error}'


def part(recorder: Recorder, args: Namespace) -> bool:
    """Measures all models; returns whether none of them was wrong."""
    recorder.set(models=MODELS)
    sizes = TINY if args.tiny else FULL
    tool, reason = _load()
    if reason:
        recorder.add(dict(reason=reason))
        print('models:', reason)
        return True
    good = True
    for mode in ('training', 'inference'):
        options = _arguments(tool, mode, args)
        subjects: Dict[str, Any] = {}
        for name in MODELS:
            subject, reason = attempt(
                lambda n=name: _subject(tool, n, options, sizes[0][0], args.
                                        backend),
                args.device)
            good &= reason is None or name != 'FMA-T'
            subjects[name] = reason or subject
        for side, batch in sizes:
            options.batch = batch
            late = recorder.late()
            rows = [
                _row(name, mode, side, batch, reason=late) for name in MODELS
            ] if late else _rows(tool, subjects, options, mode, side, args)
            for row in rows:
                recorder.add(row)
                print('models', told(row), flush=True)
    return good


def told(row: Dict[str, Any]) -> str:
    """A row in one line of the log."""
    head = f'{row["model"]} {row["mode"]} {row["shape"]} x {row["batch"]}: '
    if 'reason' in row:
        return head + row['reason']
    return head + (f'{row["images_per_second"]:.1f} images/s, '
                   f'{row["peak_memory_bytes"] / 2**20:.0f} MiB')
