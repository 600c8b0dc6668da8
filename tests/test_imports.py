"""What import-linter's contracts (`pyproject.toml`) do not say: what is declared, how long a file is."""

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("m3_backbone", "predictor", "experiments")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MAX_LINES = 400

# The modules of `predictor` that join it with the model, and what the others may know of the model:
# outcomes, what a predictor may see of an image and of a question, and all of the same samples. The types of
# arguments are the same everywhere.
JOINING_MODULES = ("predictor.adaptive.model ", "predictor.adaptive.folder ", "predictor.adaptive.inputs ")
OUTCOME_SCHEMA = (
    "m3_backbone.arguments",
    "m3_backbone.outcomes.table",
    "m3_backbone.outcomes.labels",
    "m3_backbone.features",
    "m3_backbone.reading",
    "predictor.encoders",
    "m3_backbone.outcomes.shards.write_",
)


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


IMPORTS = {module_name(path): read_imports(path) for path in MODULES}


def importers(*packages: str, of: tuple[str, ...] = ROOMS) -> list[str]:
    """`module -> import` for each import of one of `packages` in the rooms `of`."""
    return sorted(
        f"{module} -> {name}"
        for module, names in IMPORTS.items()
        if module.split(".")[0] in of
        for name in names
        if name.split(".")[0] in packages
    )


def test_predictor_knows_only_the_outcome_schema_of_the_backbone():
    beyond = [
        line
        for line in importers("m3_backbone", of=("predictor",))
        if not line.split(" -> ")[1].startswith(OUTCOME_SCHEMA) and not line.startswith(JOINING_MODULES)
    ]
    assert beyond == []


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: rows for name, rows in project["optional-dependencies"].items() if name != "dev"}
    requirements = [*project["dependencies"], *itertools.chain.from_iterable(extras.values())]
    declared = {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}
    distributions = packages_distributions()
    undeclared = {
        f"{module} -> {name}"
        for module, names in IMPORTS.items()
        for name in {full.split(".")[0] for full in names} - set(ROOMS) - set(sys.stdlib_module_names)
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


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_stay_small_and_named_for_what_they_do(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
