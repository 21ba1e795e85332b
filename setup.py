"""What pyproject.toml can't say: the presets of configs/ are installed as a folder of the package that reads them."""

from setuptools import find_packages, setup

PRESETS = "coretrain.config.presets"
RECIPES = f"{PRESETS}.data"

setup(
    packages=[
        *find_packages(include=["coretrain*", "jaxtrain*", "torchtrain*", "parity*", "twintrain*"]),
        PRESETS,
        RECIPES,
    ],
    package_dir={PRESETS: "configs", RECIPES: "configs/data"},
)
