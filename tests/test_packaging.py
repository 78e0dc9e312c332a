"""What is installed, and how: version, wheel, pins and the Makefile."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fma_vision
from fma_kernels.backends.native import build as recipe

NATIVE = 'fma_kernels/backends/native'


@pytest.fixture(scope='module')
def setup_cfg(repo_root):
    parser = configparser.ConfigParser()
    parser.read(repo_root / 'setup.cfg')
    return parser


@pytest.fixture(scope='module')
def sources(repo_root, tmp_path_factory):
    """A copy of what a wheel is built from; building leaves traces."""
    target = tmp_path_factory.mktemp('sources')
    for name in ('fma_vision', 'kernels', 'tests', 'demo', 'tools'):
        shutil.copytree(
            repo_root / name,
            target / name,
            ignore=shutil.ignore_patterns('__pycache__', recipe.NAME))
    for name in ('setup.py', 'setup.cfg', 'MANIFEST.in', 'README.md',
                 'CHANGELOG.md', 'LICENSE'):
        shutil.copy(repo_root / name, target)
    return target


def build_wheel(sources, target, **environment):
    """Builds a wheel without the network."""
    built = subprocess.run([
        sys.executable, '-m', 'pip', 'wheel', '--no-deps',
        '--no-build-isolation', '--use-pep517', '-w', target, sources
    ],
                           env=dict(os.environ, **environment),
                           capture_output=True,
                           text=True)
    assert built.returncode == 0, built.stderr
    return next(target.glob('*.whl'))


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
    """The wheel, with the C kernels where there is a compiler."""
    return build_wheel(sources, tmp_path_factory.mktemp('wheel'))


@pytest.fixture
def needs_compiler():
    try:
        recipe.compiler()
    except recipe.BuildError as error:
        pytest.skip(str(error))


def requirements(setup_cfg):
    """All requirements of the package and its extras, by section."""
    sections = {'install_requires': setup_cfg['options']['install_requires']}
    sections.update(setup_cfg['options.extras_require'])
    return {
        name: [Requirement(line) for line in text.split('\n') if line.strip()]
        for name, text in sections.items()
    }


def constraints(repo_root):
    """The pinned versions by normalised name."""
    pins = {}
    text = (repo_root / 'requirements' / 'constraints.txt').read_text()
    for line in text.splitlines():
        if line and not line.startswith('#'):
            name, version = line.split('==')
            pins[normal(name)] = Version(version)
    return pins


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


# -------------------------------------------------------------- version


def test_version_is_stated_once(repo_root, setup_cfg):
    from fma_vision.version import __version__
    assert fma_vision.__version__ == __version__
    assert setup_cfg['metadata']['version'].startswith('attr:')
    stated = [
        path.name for path in (repo_root / 'fma_vision').glob('*.py')
        if f"'{__version__}'" in path.read_text()
    ]
    assert stated == ['version.py']
    try:
        installed = metadata.version('fma_vision')
    except metadata.PackageNotFoundError:
        pytest.skip('fma_vision runs from the checkout, uninstalled')
    assert installed == __version__


def test_changelog_names_the_version(repo_root):
    text = (repo_root / 'CHANGELOG.md').read_text()
    assert f'[{fma_vision.__version__}]' in text or '[Unreleased]' in text


# ---------------------------------------------------------------- wheel


@pytest.mark.slow
def test_wheel_holds_both_packages_and_nothing_else(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(root).as_posix()
        for root, package in ((sources, 'fma_vision'), (sources / 'kernels',
                                                        'fma_kernels'))
        for path in (root / package).rglob('*.py')
    }
    assert expected <= names, sorted(expected - names)
    tops = {name.split('/')[0] for name in names}
    info = f'fma_vision-{fma_vision.__version__}.dist-info'
    assert tops == {'fma_vision', 'fma_kernels', info}


@pytest.mark.slow
def test_wheel_holds_the_package_data(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = [
        path for path in (sources / 'fma_vision').rglob('*')
        if path.is_file() and path.suffix != '.py'
    ]
    assert data, 'the official splits are package data'
    for path in data:
        assert path.relative_to(sources).as_posix() in names


@pytest.mark.slow
def test_wheel_imports_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    code = ('import fma_kernels, fma_vision; '
            'print(fma_kernels.__file__); print(fma_vision.__file__)')
    result = subprocess.run([sys.executable, '-c', code],
                            cwd=tmp_path,
                            env=dict(
                                os.environ, PYTHONPATH=str(tmp_path / 'site')),
                            capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        assert Path(line).is_relative_to(tmp_path / 'site')


@pytest.mark.slow
def test_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(n for n in names
                                 if n.endswith('/METADATA'))).decode()
    needed = set(
        re.findall(r'^Requires-Dist: ([\w-]+)[^;\n]*$', text, re.MULTILINE))
    # A user's OpenMMLab must never be replaced by installing this.
    assert needed == {'torch', 'numpy', 'timm'}
    extras = set(re.findall(r'^Provides-Extra: (\w+)', text, re.MULTILINE))
    assert extras == {'openmmlab', 'demo', 'text', 'compare', 'dev'}
    assert any(name.endswith('LICENSE') for name in names)


# ------------------------------------------------------------ the C kernels


def c_files(sources):
    found = {
        f'{NATIVE}/{path.name}'
        for path in (sources / 'kernels' / NATIVE).glob('*.[ch]')
    }
    assert found
    return found


@pytest.mark.slow
def test_wheel_holds_the_library(wheel, sources, needs_compiler, tmp_path):
    """For any Python 3, and in use without a compiler."""
    assert '-py3-none-' in wheel.name and '-any' not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert c_files(sources) <= set(archive.namelist())
        archive.extractall(tmp_path)
    found = load_library(tmp_path)
    assert found.stdout.strip() == str(tmp_path / NATIVE / recipe.NAME)


@pytest.mark.slow
def test_wheel_without_a_compiler(sources, tmp_path):
    """For any platform; with the C files, to be compiled at first use.

    What an earlier build left behind is not taken along.
    """
    wheel = build_wheel(sources, tmp_path, CC='/no/such/compiler')
    assert wheel.name.endswith('-py3-none-any.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert c_files(sources) <= names
    assert f'{NATIVE}/{recipe.NAME}' not in names
    assert 'CC=/no/such/compiler' in load_library(tmp_path).stderr


def load_library(site):
    """Prints where the library lies, in a process without a compiler."""
    code = (f'from {NATIVE.replace("/", ".")}.library import library; '
            'print(library()._name)')
    return subprocess.run([sys.executable, '-c', code],
                          cwd=site,
                          env=dict(
                              os.environ,
                              PYTHONPATH=str(site),
                              FMA_KERNELS_CACHE=str(site / 'cache'),
                              CC='/no/such/compiler'),
                          capture_output=True,
                          text=True)


def test_source_distribution_holds_what_is_compiled(sources, tmp_path):
    made = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'sdist', '-d', tmp_path],
        cwd=sources,
        capture_output=True,
        text=True)
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    wanted = {f'kernels/{name}' for name in c_files(sources)}
    assert wanted | {f'kernels/{NATIVE}/build.py'} <= names


# ----------------------------------------------------------------- pins


def test_pins_lie_in_the_ranges(repo_root, setup_cfg):
    pins = constraints(repo_root)
    for section, wanted in requirements(setup_cfg).items():
        for requirement in wanted:
            name = normal(requirement.name)
            if name == 'fma-vision':
                continue
            assert name in pins, f'{section}: {name} has no tried version'
            assert requirement.specifier.contains(pins[name]), name


def test_pinned_pairs_match(repo_root):
    pins = constraints(repo_root)
    # torchvision's minor version runs fifteen ahead of torch's.
    assert pins['torchvision'].minor == pins['torch'].minor + 15
    assert pins['opencv-python'] == pins['opencv-python-headless']


# ------------------------------------------------------------- Makefile


@pytest.fixture
def make(repo_root, tmp_path):
    """Asks make what it would do, in a copy whose environment is a stub."""
    if shutil.which('make') is None:
        pytest.skip('make is not installed')
    for name in ('Makefile', 'setup.py', 'setup.cfg'):
        shutil.copy(repo_root / name, tmp_path)
    for name in ('requirements', f'kernels/{NATIVE}'):
        shutil.copytree(repo_root / name, tmp_path / name)

    def run(*args, dry=True):
        return subprocess.run(
            ['make', *(['--dry-run'] if dry else []), *args],
            cwd=tmp_path,
            env={
                key: value
                for key, value in os.environ.items()
                if key not in ('PYTHON', 'VENV', 'ARGS', 'MAKEFLAGS')
            },
            capture_output=True,
            text=True)

    run.folder = tmp_path
    return run


@pytest.mark.parametrize('target', ['demo', 'test', 'install', 'lint'])
def test_targets_install_only_when_needed(make, target):
    assert 'requirements/install.py .venv' in make(target).stdout
    stamp = make.folder / '.venv' / '.installed'
    stamp.parent.mkdir()
    stamp.touch()
    old = stamp.stat().st_mtime
    for path in [
            *make.folder.glob('setup.*'),
            *(make.folder / 'requirements').iterdir(),
            *(make.folder / 'kernels' / NATIVE).iterdir()
    ]:
        os.utime(path, (old - 10, old - 10))
    assert 'install.py' not in make(target).stdout
    for name in ('setup.cfg', 'requirements/constraints.txt',
                 f'kernels/{NATIVE}/fma.h'):
        path = make.folder / name
        os.utime(path, (old + 10, old + 10))
        assert 'requirements/install.py .venv' in make(target).stdout
        os.utime(path, (old - 10, old - 10))


def test_missing_interpreter_is_explained(make):
    result = make('install', 'PYTHON=no-such-python', dry=False)
    assert result.returncode != 0
    assert 'No interpreter "no-such-python"' in result.stderr
    assert not (make.folder / '.venv').exists()


def test_unfit_interpreter_is_explained(make):
    """A stand-in that claims to be an old Python."""
    fake = make.folder / 'oldpython'
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; '
                    "sys.version_info = (3, 6); exec(sys.argv[1])\" \"$2\"\n")
    fake.chmod(0o755)
    result = make('install', f'PYTHON={fake}', dry=False)
    assert result.returncode != 0
    assert 'is CPython 3.6' in result.stderr
    assert 'make install PYTHON=' in result.stderr
    assert not (make.folder / '.venv').exists()


def test_install_refuses_a_folder_that_is_no_environment(repo_root, tmp_path):
    """The folder must not be emptied to make room."""
    (tmp_path / 'precious.txt').write_text('work')
    result = subprocess.run(
        [sys.executable, repo_root / 'requirements' / 'install.py', tmp_path],
        capture_output=True,
        text=True)
    assert result.returncode != 0
    assert 'is no virtual environment' in result.stderr
    assert (tmp_path / 'precious.txt').read_text() == 'work'
