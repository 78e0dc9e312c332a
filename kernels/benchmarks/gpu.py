"""The op and the backbones on a GPU: right first, then fast.

    kernels/benchmarks/gpu.sh                        # everything
    python kernels/benchmarks/gpu.py --parts op2d    # some of it
    python kernels/benchmarks/gpu.py --parts summary # what was reached

Parts: `check` (against float64 on poisoned memory), `sanitize`
(compute-sanitizer), `op2d` and `op1d` (time, rates and memory beside SDPA,
flex_attention, windows and NATTEN), `models` (backbones), `profile` and
`graphs` (kernels and launches), `summary` (each target: reached or not).

Results are written after every row to OUT/op_gpu.json, those of the models
to OUT/backbones_gpu.json. A part that fails leaves the others alone; the
exit status is then 1.
"""
import argparse
import json
import secrets
import sys
import traceback
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import gpu_check
import gpu_models
import gpu_profile
import gpu_sanitize
import gpu_speed
import torch
from gpu_common import DTYPES, ROOT, Recorder
from gpu_targets import summary

PARTS: Dict[str, Callable[[Recorder, argparse.Namespace], bool]] = dict(
    check=gpu_check.part,
    sanitize=gpu_sanitize.part,
    op2d=lambda recorder, args: gpu_speed.part(recorder, args, 'op2d'),
    op1d=lambda recorder, args: gpu_speed.part(recorder, args, 'op1d'),
    models=gpu_models.part,
    profile=gpu_profile.profile,
    graphs=gpu_profile.graphs)
FILES = dict(models='backbones_gpu.json')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=[*PARTS, 'summary'],
        default=[*PARTS, 'summary'])
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'benchmarks/results')
    parser.add_argument('--backend', default='triton')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtype', choices=DTYPES, default='bfloat16')
    parser.add_argument(
        '--seed', type=int, help='of all inputs; drawn afresh by default')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument(
        '--least', type=float, default=0.02, help='seconds of a sample')
    parser.add_argument(
        '--limit',
        type=float,
        default=45.,
        help='seconds beyond which a single call is left out')
    parser.add_argument(
        '--budget',
        type=float,
        default=150.,
        help='seconds after which a part starts no further row')
    parser.add_argument(
        '--commit', help='the commit, where this copy has no repository')
    parser.add_argument(
        '--tiny', action='store_true', help='sizes for a rehearsal')
    args = parser.parse_args(argv)
    if args.seed is None:
        args.seed = secrets.randbits(31)
    return args


def run_part(name: str, args: argparse.Namespace) -> bool:
    """Runs one part; whether it finished and found nothing wrong."""
    recorder = Recorder(args.out / FILES.get(name, 'op_gpu.json'), args)
    torch.manual_seed(args.seed)
    recorder.start(name)
    try:
        good = PARTS[name](recorder, args)
        recorder.save(finished=True)
    except Exception as error:
        traceback.print_exc()
        recorder.add(dict(reason=f'failed: {type(error).__name__}'))
        good = False
    print(f'{name}: {"passed" if good else "FAILED"}', flush=True)
    return good


def summarise(args: argparse.Namespace) -> None:
    """Prints and writes a line for each target."""
    parts: Dict[str, dict] = {}
    for file in ('op_gpu.json', *FILES.values()):
        path = args.out / file
        if path.exists():
            parts.update(json.loads(path.read_text()))
    text = '\n'.join(summary(parts))
    print(text)
    (args.out / 'summary_gpu.txt').write_text(text + '\n')


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    good = True
    for name in args.parts:
        if name == 'summary':
            summarise(args)
        else:
            good &= run_part(name, args)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
