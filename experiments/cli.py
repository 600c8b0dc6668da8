"""The console script: `tokenscale COMMAND ...` runs the same command as `python -m experiments.COMMAND ...`.

The difference is where modules are looked for. `python -m` takes those of the working directory first; the
script takes them last, so that a folder `experiments/` of the user's own does not hide this package, and a
class of the user's own is still found by its dotted name. Processes that a command starts do the same.
"""

import ast
import os
import runpy
import sys
from pathlib import Path

SCRIPT = "tokenscale"
# Extra of the distribution (pyproject.toml) that each module comes with.
EXTRAS = {
    **dict.fromkeys(
        (
            *("coral_pytorch", "easy_vqa", "filelock", "hydra", "lightning", "markupsafe", "matplotlib"),
            *("omegaconf", "optuna", "plotly", "pydantic", "rapidfuzz", "sqlalchemy", "threadpoolctl"),
            "tqdm",
        ),
        "experiments",
    ),
    "ray": "ray",
    "model2vec": "sentences",
    "wordllama": "sentences",
}
# Set by the script for the processes that it starts: jobs of a sweep, ranks of a training on several devices.
_STARTED_BY_SCRIPT = "TOKENSCALE_STARTED_BY_SCRIPT"


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    name, *arguments = sys.argv[1:] or ["--help"]
    commands = list_commands()
    if name in ("-h", "--help"):
        print(format_commands())
        return
    if name not in commands:
        print(f"error: {name}: no such command, give one of {', '.join(commands)}", file=sys.stderr)
        raise SystemExit(2)
    os.environ[_STARTED_BY_SCRIPT] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes do not look into the working directory first
    sys.argv[1:] = arguments
    # As `__main__`, with its spec: Lightning, joblib and submitit start their processes from it.
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        missing = describe_missing(error)
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(2) from error


def find_config_dir() -> Path:
    """The `conf/` folder: beside the packages in a clone, inside `experiments/` in an installed wheel."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no conf/ folder beside or inside {here}: reinstall tokenscale, or run from a clone"
    )


def list_commands() -> list[str]:
    """Return the names of all commands; each has a configuration of its name."""
    return sorted(path.stem for path in find_config_dir().glob("*.yaml"))


def format_commands() -> str:
    """Return the list of all commands, a line each."""
    commands = list_commands()
    width = max(map(len, commands)) + 2
    return "\n".join(
        [
            f"usage: {SCRIPT} COMMAND OPTION=VALUE ...",
            "",
            *(f"  {name:{width}}{read_docstring(name).splitlines()[0]}" for name in commands),
            "",
            f"{SCRIPT} COMMAND --help lists the options of a command. Start with: {SCRIPT} run",
        ]
    )


def read_docstring(command: str) -> str:
    """Return the docstring of the module of a command, without importing it."""
    folder = Path(__file__).parent
    module = folder / f"{command}.py"
    if not module.is_file():
        module = folder / command / "__main__.py"
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def describe_missing(error: ModuleNotFoundError) -> str | None:
    """Return which extra of tokenscale has the module that is missing; None if none has it."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    if extra is None:
        return None
    return f"{module} is not installed: pip install 'tokenscale[{extra}]'"


def is_started_by_script() -> bool:
    """Return whether this process is the console script or was started by it."""
    return _STARTED_BY_SCRIPT in os.environ


def append_working_directory() -> None:
    """Let modules of the working directory be imported by their name, after all others."""
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
