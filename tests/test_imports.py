"""Requirements of the code are declared and pinned; import-linter (`pyproject.toml`) checks the rest."""

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.paths import ROOT

ROOMS = ("m3_backbone", "predictor", "experiments")
# Packages whose process runs the modules that import them, which no dependency brings.
HOSTS = {"lmms_eval"}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it; `from a import b` gives `a.b`."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            imported |= {".".join([*base, alias.name]) for alias in node.names}
    return imported


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: rows for name, rows in project["optional-dependencies"].items() if name != "dev"}
    requirements = [*project["dependencies"], *itertools.chain.from_iterable(extras.values())]
    declared = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}
    distributions = packages_distributions()
    undeclared = {
        f"{module_name(path)} -> {name}"
        for path in MODULES
        for name in {full.split(".")[0] for full in read_imports(path)}
        - {*ROOMS, *HOSTS, *sys.stdlib_module_names}
        if not declared & {distribution.lower() for distribution in distributions.get(name, [])}
    }
    assert undeclared == set()


def test_declared_requirements_are_pinned():
    """Every requirement, extras included, has its exact tested version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    names = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in pins if "==" in line}
    assert names - pinned == {project["name"]}  # the dev extra names the others
    assert "torchvision" not in pinned
