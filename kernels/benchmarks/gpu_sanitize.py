"""The tiny checks again, under compute-sanitizer where there is one."""
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict

import torch
from gpu_common import Recorder


def part(recorder: Recorder, args: Namespace) -> bool:
    """Runs each of its tools; returns whether none found anything."""
    program = shutil.which('compute-sanitizer') or shutil.which(
        'compute-sanitizer', path='/usr/local/cuda/bin')
    good = True
    for tool in ('memcheck', 'racecheck'):
        row: Dict[str, Any] = dict(tool=tool)
        if torch.device(args.device).type != 'cuda' or program is None:
            row['reason'] = 'not run: ' + ('no compute-sanitizer here'
                                           if program is None else
                                           'the device is no GPU')
        elif reason := recorder.late():
            row['reason'] = reason
        else:
            row.update(
                _sanitize(program, tool, recorder.path.parent, args,
                          recorder.left() / 2))
            good &= row['status'] == 0
        recorder.add(row)
        print('sanitize', row)
    return good


def _sanitize(program: str, tool: str, folder: Path, args: Namespace,
              seconds: float) -> Dict[str, Any]:
    script = str(Path(__file__).with_name('gpu.py'))
    # Every tensor its own allocation, so that a step beyond one is seen.
    environment = dict(os.environ, PYTORCH_NO_CUDA_MEMORY_CACHING='1')
    out = folder / f'sanitize-{tool}'
    command = [
        program, '--tool', tool, '--error-exitcode', '9', sys.executable,
        script, '--parts', 'check', '--tiny', '--backend', args.backend,
        '--device', args.device, '--dtype', args.dtype, '--out',
        str(out)
    ]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds)
        text, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        text, status = f'took more than {seconds:.0f} s', None
    shutil.rmtree(out, ignore_errors=True)
    lines = [line for line in text.splitlines() if '=====' in line] or [text]
    return dict(status=status, summary=lines[-1][-300:])
