"""What a wheel holds: everything that a clone runs with, the configuration tree included."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement

from experiments.command_line.script import EXTRAS, describe_missing
from tests.paths import ROOT

# Of the embedded model's training: in the clone only.
LEFTOVERS = {"m3_backbone/assets/TRAINING_LOG.md", "m3_backbone/assets/tiny_m3/patch_heads.safetensors"}
# What others that are installed beside tokenscale hold a dependency at, or below.
NEIGHBOURS = {
    "SGLang 0.5.23": {"transformers": "5.19.0", "tokenizers": "0.23.2", "sentencepiece": "0.2.1"},
    "vLLM 0.33.0": {"transformers": "5.19.0", "torch": "2.13.0", "numpy": "2.3.5", "filelock": "3.20.3"},
    "lmms-eval 0.7.3": {"protobuf": "6.33.6"},
    "Gradio 6.31.0": {
        "pillow": "12.3.0",
        "huggingface_hub": "2.4.0",
        "jinja2": "3.1.6",
        "markupsafe": "3.0.4",
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


@pytest.mark.long
def test_wheel_holds_packages_data_and_configuration(wheel):
    files = [
        path.relative_to(ROOT).as_posix()
        for room in ("m3_backbone", "predictor", "experiments", "conf")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert set(files) >= LEFTOVERS
    expected = {
        f"experiments/{name}" if name.startswith("conf/") else name for name in set(files) - LEFTOVERS
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected


@pytest.mark.long
def test_unpacked_wheel_runs_with_its_own_configuration(wheel, tmp_path):
    wheel.extractall(tmp_path)
    command = [sys.executable, "-m", "experiments.run", "--info", "searchpath"]
    output = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert str(tmp_path / "experiments" / "conf") in output
    assert str(ROOT) not in output


@pytest.fixture(scope="module")
def script(wheel, tmp_path_factory):
    """The console script as an installer writes it, and an environment that has the unpacked wheel alone."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    (entry_points,) = folder.glob("*.dist-info/entry_points.txt")
    assert entry_points.read_text() == (
        "[console_scripts]\ntokenscale = experiments.command_line.script:main\n\n"
        "[lmms_eval.models]\ntokenscale = predictor.adaptive:make_manifest\n"
    )
    path = folder / "bin" / "tokenscale"
    path.parent.mkdir()
    path.write_text("import sys\nfrom experiments.command_line.script import main\nsys.exit(main())\n")
    return path, os.environ | {"PYTHONPATH": str(folder)}


@pytest.fixture
def own_experiments(tmp_path):
    """A working directory with modules of the user's own, a package `experiments` among them."""
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('not this one')\n")
    (tmp_path / "my_task.py").write_text("class MyTask:\n    def __init__(self, size: int) -> None: ...\n")
    return tmp_path


def run_script(script, folder, *arguments):
    path, environment = script
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.long
def test_script_runs_the_installed_command_beside_other_experiments(script, own_experiments):
    done = run_script(script, own_experiments, "run", "--info", "searchpath")
    assert done.returncode == 0, done.stderr
    assert str(script[0].parents[1] / "experiments" / "conf") in done.stdout
    assert str(ROOT) not in done.stdout


@pytest.mark.slow
def test_script_finds_the_modules_of_the_user(script, own_experiments):
    done = run_script(script, own_experiments, "bench_labelling", "task._target_=my_task.MyTask")
    assert done.returncode == 2
    assert "my_task.MyTask has no such argument, give one of its own: size" in done.stderr


@pytest.mark.long
def test_script_names_an_unknown_command(script, tmp_path):
    done = run_script(script, tmp_path, "lable")
    assert done.returncode == 2
    assert done.stderr.startswith("error: lable: no such command, give one of answer, ")


@pytest.mark.slow
def test_jobs_of_a_sweep_run_the_installed_command_beside_other_experiments(script, own_experiments):
    """Submitit starts them with `python -m`, which otherwise looks into the working directory first."""
    arguments = ("compare", "-m", "hydra/launcher=submitit_local", "runs=nowhere,elsewhere")
    done = run_script(script, own_experiments, *arguments)
    assert done.returncode != 0
    (sweep,) = (own_experiments / "outputs" / "multirun").iterdir()
    logs = "".join(path.read_text() for path in sweep.glob(".submitit/*/*_log.err"))
    assert "not this one" not in logs
    assert "no metrics.json in nowhere" in logs and "no metrics.json in elsewhere" in logs


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_without_experiments(code):
    """Run code where no module of the extra `experiments` can be imported."""
    blocked = {module for module, extra in EXTRAS.items() if extra == "experiments"}
    blocked -= {"filelock", "joblib", "tqdm", "threadpoolctl", "markupsafe"}  # others' requirements too
    command = [sys.executable, "-c", f"{BLOCKED.format(blocked=blocked)}\n{code}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def normalize(name):
    return name.lower().replace("_", "-")


def declared(*extras):
    """Requirements of the base and of some extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum((project["optional-dependencies"][extra] for extra in extras), project["dependencies"])
    return {normalize(required.name): required for required in map(Requirement, lines)}


def test_the_pinned_versions_are_in_the_declared_ranges():
    pins = map(Requirement, re.findall(r"^[^#\n]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {normalize(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    required = declared("experiments", "ray", "sentences", "sweep")
    assert [name for name in required if not required[name].specifier.contains(pinned[name])] == []


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_what_stands_beside_is_in_the_declared_ranges(neighbour):
    required = declared("experiments")
    held = {normalize(name): version for name, version in NEIGHBOURS[neighbour].items()}
    too_narrow = [
        str(required[name]) for name in held.keys() & required if held[name] not in required[name].specifier
    ]
    assert too_narrow == []


def test_extras_of_modules_are_those_of_the_declaration():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        (
            extra,
            re.split(r"[^\w.-]", requirement)[0]
            .lower()
            .replace("-", "_")
            .removesuffix("_core")
            .removesuffix("_skinny"),
        )
        for extra in set(EXTRAS.values())
        for requirement in project["optional-dependencies"][extra]
        if not requirement.startswith("tokenscale[")
    }
    assert {(extra, module) for module, extra in EXTRAS.items()} == named


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("run", "hydra", "experiments"),
        ("serve", "omegaconf", "serve"),
        ("demo", "uvicorn", "demo"),
        ("demo", "ray", "ray"),
        ("run", "starlette", "serve"),
    ],
)
def test_the_extra_to_install_has_all_that_the_command_needs(command, module, extra):
    message = describe_missing(ModuleNotFoundError(name=module), command)
    assert message == f"{module} is not installed: pip install 'tokenscale[{extra}]'"
    assert describe_missing(ModuleNotFoundError(name=f"{module}.misspelled"), command) is None


@pytest.mark.long
def test_models_are_used_without_the_extras():
    """All of the model and of the predictors but what trains them; one module runs inside of lmms-eval."""
    code = f"import sys; sys.path.append({str(ROOT / 'tests/fixtures/fake_lmms_eval')!r})"
    code += """
import importlib, pkgutil, m3_backbone, predictor
for package in (m3_backbone, predictor):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "training" not in module.name.split("."):
            importlib.import_module(module.name)
"""
    done = run_without_experiments(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_model_object_imports_nothing_that_it_does_not_need():
    unneeded = {"hydra", "omegaconf", "lightning", "pandas", "matplotlib", "plotly"}
    code = f"import sys, predictor.adaptive.model; print(sorted({unneeded} & sys.modules.keys()))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output.strip() == "[]"


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "package"), [(["run"], "hydra"), (["label", "--help"], "omegaconf")], ids=["run", "label"]
)
def test_a_command_without_its_extra_names_it(arguments, package):
    code = f"from experiments.command_line.script import main\nsys.argv[1:] = {arguments}\nmain()"
    done = run_without_experiments(code)
    assert done.returncode == 2
    assert done.stderr == f"error: {package} is not installed: pip install 'tokenscale[experiments]'\n"
