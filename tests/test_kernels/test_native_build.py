"""How the library of C kernels is compiled, found and loaded."""
import importlib.util
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fma_kernels.backends.native import build as recipe
from fma_kernels.backends.native import library as real

HEADER = '#define FMA_EXPORT __attribute__((visibility("default")))\n'
SOURCE = '#include "fma.h"\nFMA_EXPORT int fma_abi(void) { return %d; }\n'


def missing_compiler():
    """Why nothing can be compiled here, or None."""
    try:
        recipe.compiler()
    except recipe.BuildError as error:
        return str(error)
    return None


needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))


def fresh(folder):
    """The modules as a new process finds them, from a copy in ``folder``."""
    name = f'native_{len(sys.modules)}'
    spec = importlib.util.spec_from_file_location(
        name, folder / '__init__.py', submodule_search_locations=[str(folder)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f'{name}.library')


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A package of two small C files, an empty cache, a counting compiler."""
    for name in ('CC', 'FMA_KERNELS_NATIVE', 'FMA_KERNELS_CFLAGS',
                 'FMA_KERNELS_ISA'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    package, cache = tmp_path / 'package', tmp_path / 'cache'
    package.mkdir()
    for name in ('__init__.py', 'build.py', 'library.py', 'key.c'):
        shutil.copy(recipe.FOLDER / name, package)
    (package / 'fma.h').write_text(HEADER)
    (package / 'api.c').write_text(SOURCE % real.ABI)
    monkeypatch.setenv('FMA_KERNELS_CACHE', str(cache))
    calls = tmp_path / 'calls'
    if os.name == 'posix' and missing_compiler() is None:
        counted = tmp_path / 'counted'
        counted.write_text(
            '#!/bin/sh\ncase "$*" in *--version) ;; *) sleep 0.2; '
            f'echo >> {calls};; esac\n'
            f'exec {" ".join(recipe.compiler())} "$@"\n')
        counted.chmod(0o755)
        monkeypatch.setenv('CC', str(counted))
    return SimpleNamespace(
        package=package,
        cache=cache,
        prebuilt=package / recipe.NAME,
        cached=lambda: sorted(cache.glob(f'*{recipe.SUFFIX}')),
        compiled=lambda: calls.stat().st_size if calls.exists() else 0)


@pytest.fixture
def no_compiler(monkeypatch):
    """A call after which there is none."""

    def remove():
        monkeypatch.delenv('CC', raising=False)
        monkeypatch.setenv('PATH', '')

    return remove


def origin(module):
    """Where the library that a module loaded lay."""
    assert module.unavailable() is None
    assert module.library().fma_abi() == real.ABI
    return module.library()._name


@needs_compiler
def test_the_package_has_its_library():
    if os.environ.get('FMA_KERNELS_NATIVE') == '0':
        pytest.skip(real.unavailable())
    assert real.unavailable() is None
    assert real.library() is real.library()


# ------------------------------------------------------------------- the cache
@needs_compiler
def test_it_is_compiled_once(home):
    paths = {origin(fresh(home.package)) for _ in range(2)}
    assert paths == set(map(str, home.cached()))
    assert home.compiled() == 1


@needs_compiler
@pytest.mark.parametrize('change', ['source', 'header', 'flags', 'compiler'])
def test_what_decides_about_it_is_noticed(home, change, monkeypatch):
    first = origin(fresh(home.package))
    if change == 'flags':
        monkeypatch.setenv('FMA_KERNELS_CFLAGS', '-DNOTHING="a b"')
    elif change == 'compiler':
        monkeypatch.setenv('CC', os.environ['CC'] + ' -DNOTHING')
    else:
        name = dict(source='api.c', header='fma.h')[change]
        with (home.package / name).open('a') as file:
            file.write('/* changed */\n')
    assert origin(fresh(home.package)) != first
    assert home.compiled() == len(home.cached()) == 2


@needs_compiler
@pytest.mark.parametrize('content', [b'', b'no library', None], ids=str)
def test_a_broken_file_is_compiled_anew(home, content):
    """None: truncated; to load it would end the process."""
    path = home.cache / os.path.basename(origin(fresh(home.package)))
    whole = path.read_bytes()
    path.unlink()  # it is mapped: what is written must be another file
    path.write_bytes(whole[:len(whole) // 3] if content is None else content)
    assert origin(fresh(home.package)) in map(str, home.cached())
    assert home.compiled() == 2 and len(home.cached()) == 1


@needs_compiler
def test_nothing_can_be_written(home, monkeypatch, tmp_path):
    """Neither to the package nor to the cache: a file is in its place."""
    home.cache.write_text('')
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(temporary))
    before = sorted(home.package.iterdir())
    home.package.chmod(0o555)
    with pytest.warns(RuntimeWarning, match='FMA_KERNELS_CACHE') as caught:
        module = fresh(home.package)
        assert str(temporary) in origin(module)
        assert str(temporary) in origin(module)
    warning, = caught
    assert str(home.cache) in str(warning.message)  # which, and why
    home.package.chmod(0o755)
    assert sorted(home.package.iterdir()) == before
    if os.name == 'posix':
        assert not list(temporary.iterdir())


@needs_compiler
def test_a_home_is_not_needed(home, monkeypatch):
    monkeypatch.delenv('FMA_KERNELS_CACHE')
    module = fresh(home.package)

    def nowhere():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(module, '_cache_folder', nowhere)
    with pytest.warns(RuntimeWarning, match='home directory'):
        origin(module)


@needs_compiler
def test_a_filled_cache_needs_no_compiler(home, no_compiler):
    first = origin(fresh(home.package))
    no_compiler()
    assert origin(fresh(home.package)) == first
    (home.package / 'api.c').write_text(SOURCE % real.ABI + '\n')
    assert 'no C compiler' in fresh(home.package).unavailable()


@needs_compiler
def test_a_damaged_file_where_nothing_compiles(home, no_compiler):
    path = home.cache / os.path.basename(origin(fresh(home.package)))
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:len(whole) // 3])
    no_compiler()
    assert 'no C compiler' in refused(home)


@needs_compiler
def test_a_whole_file_that_does_not_load(home, no_compiler):
    """As one from a machine with other system libraries."""
    origin(fresh(home.package))
    path, = home.cached()
    path.unlink()
    content = real._digest(b'no library')
    path = path.with_stem(f'{path.stem[:65]}-{content}')
    path.write_bytes(b'no library')
    no_compiler()
    reason = fresh(home.package).unavailable()
    assert path.name in reason and 'no C compiler' in reason


@needs_compiler
def test_old_files_are_removed(home, monkeypatch):
    """Those used last are kept; what is no file of ours is not touched."""
    used = fresh(home.package)
    first = Path(origin(used))
    kept = [home.cache / f'mine{recipe.SUFFIX}', home.cache / 'lock']
    kept[0].write_bytes(b'')
    fillers = []
    for number in range(real.KEPT + 2):
        name = '-'.join(f'{i:032x}' for i in (number, 0, 0))
        fillers.append(home.cache / f'{name}{recipe.SUFFIX}')
        fillers[-1].write_bytes(b'')
        os.utime(fillers[-1], (number, number))
    os.utime(first, (0, 0))
    assert origin(fresh(home.package)) == str(first)  # which is a use of it
    monkeypatch.setenv('FMA_KERNELS_CFLAGS', '-DOTHER')
    second = Path(origin(fresh(home.package)))
    assert set(home.cache.iterdir()) == {
        first, second, *kept, *fillers[-(real.KEPT - 2):]
    }
    # One that is removed by another process serves on where it is loaded.
    for path in (first, second):
        path.unlink()
    assert used.library().fma_abi() == real.ABI
    module = fresh(home.package)
    monkeypatch.setattr(module, '_files', lambda *_: [first, second] * 9)
    module._prune(home.cache)


@needs_compiler
@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(),
    reason='the processes share this one\'s modules')
def test_processes_that_start_together(home):
    context = multiprocessing.get_context('fork')
    barrier, found = context.Barrier(4), context.SimpleQueue()

    def first_use():
        module = fresh(home.package)
        barrier.wait(30)
        found.put(origin(module))

    processes = [context.Process(target=first_use) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {found.get() for _ in range(4)} == set(map(str, home.cached()))
    assert len(home.cached()) == home.compiled() == 1


# ---------------------------------------------------------- beside the package
@needs_compiler
def test_one_beside_the_package_needs_no_compiler(home, no_compiler):
    fresh(home.package).build.build(home.prebuilt)
    no_compiler()
    assert origin(fresh(home.package)) == str(home.prebuilt)
    assert not home.cache.exists()


@needs_compiler
def test_one_of_other_sources_is_not_used(home):
    fresh(home.package).build.build(home.prebuilt)
    (home.package / 'api.c').write_text(SOURCE % real.ABI + '\n')
    assert origin(fresh(home.package)) in map(str, home.cached())


@needs_compiler
def test_without_sources_it_is_taken_as_it_is(home, no_compiler):
    fresh(home.package).build.build(home.prebuilt)
    for path in home.package.glob('*.[ch]'):
        path.unlink()
    assert origin(fresh(home.package)) == str(home.prebuilt)
    home.prebuilt.unlink()
    assert 'reinstall' in fresh(home.package).unavailable()


@needs_compiler
def test_one_that_does_not_load(home, no_compiler):
    """As one for another processor."""
    home.prebuilt.write_text(fresh(home.package).build.key())
    assert origin(fresh(home.package)) in map(str, home.cached())
    no_compiler()
    assert origin(fresh(home.package)) in map(str, home.cached())
    shutil.rmtree(home.cache)
    reason = fresh(home.package).unavailable()
    assert recipe.NAME in reason and 'no C compiler' in reason


# ---------------------------------------------------------- the reasons
def refused(home):
    """The one reason that a package gives; nothing is left behind."""
    module = fresh(home.package)
    reason = module.unavailable()
    with pytest.raises(RuntimeError, match='cannot be used') as info:
        module.library()
    assert reason in str(info.value) and '\n' not in reason
    assert not home.cached()
    return reason


def test_no_compiler(home, no_compiler):
    no_compiler()
    assert 'no C compiler' in refused(home) and 'install' in refused(home)


def test_a_compiler_that_is_not_there(home, monkeypatch):
    """Another is not taken in its stead."""
    monkeypatch.setenv('CC', '/no/such/cc -O2')
    assert 'CC=/no/such/cc -O2' in refused(home)


@pytest.mark.skipif(os.name != 'posix', reason='a shell script')
def test_a_compiler_that_fails(home, monkeypatch, tmp_path):
    compiler = tmp_path / 'broken'
    compiler.write_text('#!/bin/sh\necho hello >&2\n'
                        'echo "fatal error: no licence" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CC', str(compiler))
    assert f'{compiler} could not' in refused(home)
    assert '(fatal error: no licence)' in refused(home)


@needs_compiler
def test_a_source_that_does_not_compile(home):
    (home.package / 'api.c').write_text('int fma_abi(void) { return; }\n}\n')
    assert 'api.c:1' in refused(home) or 'api.c:2' in refused(home)


@pytest.mark.parametrize('value', ['0', 'false', 'Off', 'NO'])
def test_it_is_turned_off(home, monkeypatch, value):
    monkeypatch.setenv('FMA_KERNELS_NATIVE', value)
    assert refused(home) == f'FMA_KERNELS_NATIVE={value} turns it off'
    assert home.compiled() == 0


@needs_compiler
@pytest.mark.parametrize('value', ['', '1', 'True', 'on', 'YES'])
def test_it_is_turned_on(home, monkeypatch, value):
    monkeypatch.setenv('FMA_KERNELS_NATIVE', value)
    origin(fresh(home.package))


def test_a_wrong_switch(home, monkeypatch):
    monkeypatch.setenv('FMA_KERNELS_NATIVE', 'maybe')
    module = fresh(home.package)
    for ask in (module.unavailable, module.library):
        with pytest.raises(ValueError, match="FMA_KERNELS_NATIVE .*'maybe'"):
            ask()
    assert not home.cached()


@needs_compiler
@pytest.mark.parametrize(
    'source', [
        SOURCE % (real.ABI + 1),
        '#include "fma.h"\n',
    ],
    ids=['another', 'none'])
def test_the_interface_is_checked(home, source):
    (home.package / 'api.c').write_text(source)
    assert f'instead of {real.ABI}' in fresh(home.package).unavailable()
