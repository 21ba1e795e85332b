"""What pyproject.toml can't say: the presets of configs/ are installed as a folder of the package that reads them."""

from setuptools import find_packages, setup

PRESETS = "coretrain.config.presets"

setup(
    packages=[*find_packages(include=["coretrain*", "jaxtrain*", "torchtrain*", "parity*", "twintrain*"]), PRESETS],
    package_dir={PRESETS: "configs"},
)
