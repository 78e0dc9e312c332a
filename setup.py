from setuptools import find_packages, setup

setup(
    packages=find_packages(include=['fma_vision', 'fma_vision.*']) +
    find_packages('kernels'))
