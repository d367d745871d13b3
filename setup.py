"""List the packages to install. pyproject.toml has everything else.

`kwise/` links to folders at the top level. Where a copy of the repository has no symbolic links (a
zip file from GitHub that pip unpacks, or a clone on Windows), the folders themselves are installed.
Otherwise a package without its client would be installed, and nobody told.
"""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("benchmarks", "bulk", "client", "cluster", "engine", "evaluation", "export", "protos")
FOLDERS += ("rl", "train")

unlinked = [folder for folder in FOLDERS if not Path("kwise", folder).is_dir()]
packages = find_packages(include=["kwise*"])
for folder in unlinked:
    packages += [f"kwise.{folder}", *(f"kwise.{folder}.{name}" for name in find_packages(folder))]

setup(packages=packages, package_dir={f"kwise.{folder}": folder for folder in unlinked})
