"""The console script: `tokenscale COMMAND ...` runs the same command as `python -m experiments.COMMAND ...`.

The two differ in the order of the module search path. `python -m` has the working directory first; the script
has it last, so that a folder `experiments/` of the user does not hide this package, and a class of the user
is still found by its dotted name. Processes that a command starts have the same order.
"""

import ast
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = "tokenscale"
# Module -> extra of the distribution (pyproject.toml) that installs it.
EXTRAS = {
    **dict.fromkeys(
        (
            *("coral_pytorch", "easy_vqa", "filelock", "hydra", "lightning", "markupsafe", "matplotlib"),
            *("omegaconf", "optuna", "plotly", "pydantic", "rapidfuzz", "sqlalchemy", "threadpoolctl"),
            *("joblib", "tqdm"),
        ),
        "experiments",
    ),
    "datasets": "data",
    **dict.fromkeys(("fastapi", "gradio"), "demo"),
    **dict.fromkeys(("aiohttp", "httpx", "prometheus_client", "starlette", "uvicorn"), "serve"),
    "av": "video",
    "mlflow": "mlflow",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "model2vec": "sentences",
    "wordllama": "sentences",
}
# Command -> its extra, which includes `experiments`; `demo` includes `serve`.
_EXTRAS_OF_COMMANDS = {"serve": "serve", "demo": "demo"}
# Environment variable set by the script for its child processes: jobs of a sweep, ranks of a training.
_STARTED_BY_SCRIPT = "TOKENSCALE_STARTED_BY_SCRIPT"


@contextmanager
def exit_on_closed_output() -> Iterator[None]:
    """Exit with status 1 and without a traceback if the reader of stdout has closed it, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


@exit_on_closed_output()
def main() -> None:
    """Run the command in the first argument, with the arguments after it. Hyphens count as underscores."""
    given, *arguments = sys.argv[1:] or ["--help"]
    name = given if given.startswith("-") else given.replace("-", "_")
    commands = list_commands()
    if name in ("-h", "--help"):
        print(format_commands())
        return
    if name not in commands:
        print(f"error: {given}: no such command, give one of {', '.join(commands)}", file=sys.stderr)
        raise SystemExit(2)
    os.environ[_STARTED_BY_SCRIPT] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # child processes do not look into the working directory first
    sys.argv[1:] = arguments
    # As `__main__`, with its spec: Lightning, joblib and submitit start their processes from it.
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        missing = describe_missing(error, name)
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(2) from error


def find_config_dir() -> Path:
    """Return the `conf/` folder: beside the packages in a clone, inside `experiments/` in a wheel."""
    package_dir = Path(__file__).resolve().parents[1]
    for candidate in (package_dir / "conf", package_dir.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no conf/ folder beside or inside {package_dir}: reinstall tokenscale, or run from a clone"
    )


def list_commands() -> list[str]:
    """Return the names of all commands; each has a configuration of its name."""
    return sorted(path.stem for path in find_config_dir().glob("*.yaml"))


def format_commands() -> str:
    """Return the list of all commands, one per line."""
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
    folder = Path(__file__).parents[1]
    module = folder / f"{command}.py"
    if not module.is_file():
        module = folder / command / "__main__.py"
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def describe_missing(error: ModuleNotFoundError, command: str = "") -> str | None:
    """Return a message with the extra of tokenscale to install; None if none has the missing module.

    The extra of the command is named if it has the module among others that the command needs too.
    """
    # A dotted name is one that an installed package lacks.
    extra = EXTRAS.get(error.name or "")
    if extra is None:
        return None
    if extra in ("experiments", "serve"):
        extra = _EXTRAS_OF_COMMANDS.get(command, extra)
    return f"{error.name} is not installed: pip install 'tokenscale[{extra}]'"


def is_started_by_script() -> bool:
    """Return whether this process is the console script or was started by it."""
    return _STARTED_BY_SCRIPT in os.environ


def append_working_directory() -> None:
    """Append the working directory to the module search path."""
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
