"""A name that the console cannot print costs nothing, in any tool."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from fma_vision.engine.console import print_any_name
from fma_vision.engine.files import write_json

ROOT = Path(__file__).parents[2]
NAME = '写真 \udcff.jpg'  # the second is a byte that is no UTF-8
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix() for folder in ('tools', 'demo')
    for path in (ROOT / folder).rglob('*.py')
    if '__main__' in path.read_text(encoding='utf-8'))
# What sets the console up, and the tests of each below.
WAYS = (r'run_tool\(', r'\brun\(main\)', r'print_any_name\(\)',
        r'sys\.stdout\.reconfigure\(errors=')

ENCODINGS = pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'utf-8'])


def shown(call: Callable, encoding: str, monkeypatch) -> str:
    """What a call prints to a console that knows few characters."""
    # Not in a fixture: pytest puts its own stream there for each phase.
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, 'stdout', console)
    call()
    console.flush()
    return console.buffer.getvalue().decode(encoding)


@ENCODINGS
def test_a_name_is_printed(encoding: str, monkeypatch) -> None:

    def call() -> None:
        print_any_name()
        print(NAME)

    assert r' \udcff.jpg' in shown(call, encoding, monkeypatch)


def test_a_stream_that_cannot_be_set_up(monkeypatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, 'stdout', stream)
        print_any_name()


@ENCODINGS
def test_tools(encoding: str, monkeypatch) -> None:
    pytest.importorskip('mmengine')
    from fma_vision.engine import run_tool
    text = shown(lambda: run_tool(lambda: print(NAME)), encoding, monkeypatch)
    assert r'\udcff' in text


@ENCODINGS
def test_converters(encoding: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dataset_converters'))
    from common import run
    text = shown(lambda: run(lambda: print(NAME)), encoding, monkeypatch)
    assert r'\udcff' in text


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_sets_its_console_up(script: str) -> None:
    text = (ROOT / script).read_text(encoding='utf-8')
    main = text[text.rindex('__main__'):]
    assert any(re.search(way, main) for way in WAYS), script


def test_in_a_process(tmp_path) -> None:
    """Of those that set it up in a line of their own."""
    out = tmp_path / '写真.png'
    run = subprocess.run(
        [sys.executable, ROOT / 'demo/footprint.py', '--out', out],
        capture_output=True,
        env={
            **os.environ, 'PYTHONIOENCODING': 'ascii'
        })
    assert run.returncode == 0, run.stderr
    assert rb'\u5199\u771f.png' in run.stdout and out.is_file()


def test_names_in_json(tmp_path) -> None:
    path = write_json(tmp_path / 'a.json', dict(name=NAME))
    assert '写真' in path.read_text(encoding='utf-8')
    assert json.loads(path.read_bytes()) == dict(name=NAME)


def test_names_in_the_log(tmp_path) -> None:
    """Whatever the encoding of the locale, which log files have."""
    pytest.importorskip('mmengine')
    script = f"""
from fma_vision.engine.runner import ConsoleRunner
import pathlib, torch.nn as nn
runner = ConsoleRunner(nn.Linear(1, 1), work_dir={str(tmp_path)!r})
runner.logger.info({NAME!a})
"""
    run = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env={
            **os.environ, 'PYTHONIOENCODING': 'ascii:backslashreplace',
            'LC_ALL': 'C',
            'PYTHONUTF8': '0',
            'PYTHONCOERCECLOCALE': '0'
        })
    assert run.returncode == 0 and 'Error' not in run.stderr, run.stderr
    text = next(tmp_path.glob('*/*.log')).read_text(encoding='utf-8')
    assert r'写真 \udcff.jpg' in text
