"""The packages, and the C kernels for CPUs, which no install needs."""
import importlib.util
import os
import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1: wheels are for one Python
    bdist_wheel = None

NATIVE = 'kernels/fma_kernels/backends/native'
# How to compile is the package's business, as it does so at run time as well.
spec = importlib.util.spec_from_file_location(
    'recipe',
    Path(__file__).resolve().parent / NATIVE / 'build.py')
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)


class BuildLibrary(build_ext):
    """Compiles the C files into a plain library instead of an extension."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split('.')[:-1], recipe.NAME)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier build
        try:
            recipe.build(target)
        except recipe.BuildError as error:
            raise CompileError(
                f'{error}. The install goes on: on CPUs fma_kernels tries '
                'again at first use, and runs slower PyTorch where that '
                'fails.') from error


commands = dict(build_ext=BuildLibrary)
if bdist_wheel is not None:

    class TagWheel(bdist_wheel):
        """Any Python 3 loads the library; without it, so does any platform."""

        def get_tag(self) -> tuple:
            build = self.get_finalized_command('build_ext')
            if not all(map(os.path.exists, build.get_outputs())):
                return 'py3', 'none', 'any'
            # A Python for two processors compiles for the one it runs on.
            name = super().get_tag()[2]
            return 'py3', 'none', name.replace('universal2',
                                               platform.machine())

    commands['bdist_wheel'] = TagWheel

setup(
    packages=find_packages(include=['fma_vision', 'fma_vision.*']) +
    find_packages('kernels'),
    ext_modules=[
        Extension(
            'fma_kernels.backends.native._fma_native',
            sources=[f'{NATIVE}/{path.name}' for path in recipe.sources()],
            optional=True)
    ],
    cmdclass=commands)
