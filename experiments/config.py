"""Where the configuration tree lies, and the one decorator that turns a function of it into a command."""

import functools
import itertools
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException


def find_config_dir() -> Path:
    """The `conf/` folder: beside the packages in a clone, inside `experiments/` in an installed wheel."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"no conf/ folder beside or inside {here}: reinstall tokenscale, or run from a clone"
    )


# Optuna's and SQLAlchemy's: a full disk, a database of another user, no server, a URL that names nothing.
_ERRORS_OF_DATABASES = ("StorageInternalError", "OperationalError", "NoSuchModuleError", "ArgumentError")


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[..., Any]]:
    """Run a function as `python -m experiments.<config_name>` on `conf/<config_name>.yaml`.

    A user's mistake (ValueError or OSError with a message that says what to do, also from a constructor that
    Hydra calls; a value that must be given and is not) ends in that one message and exit status 2; everything
    else keeps its traceback, as it is ours to mend. `HYDRA_FULL_ERROR=1` shows the traceback of both.
    An interrupted command (Ctrl-C) says what is lost, in the notes of the KeyboardInterrupt, and how to
    resume; its exit status is 130. Characters that the terminal cannot show are replaced.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> Any:
            replace_unprintable()
            try:
                # What this imports would slow down --help and completion.
                from experiments.settings.check import check_settings

                return function(check_settings(config_name, config))
            except KeyboardInterrupt as interrupt:
                lost = "".join(f"{note} " for note in getattr(interrupt, "__notes__", ()))
                print(
                    f"\nInterrupted. {lost}Finished files are kept; run `{format_given_command()}` again to "
                    "resume.",
                    file=sys.stderr,
                )
                raise SystemExit(130) from None
            except Exception as error:
                mistake = describe_mistake(error)
                if mistake is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                for line in mistake.splitlines():
                    print(f"error: {line}", file=sys.stderr)
                raise SystemExit(2) from error

        command = hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name=config_name)(
            guarded
        )

        @functools.wraps(function)
        def run(config: DictConfig | None = None) -> Any:
            if config is not None:
                return command(config)
            arguments = sys.argv[1:]
            try:
                mistake = (
                    find_wrong_group(arguments)
                    or find_unreadable(arguments)
                    or find_uncomposable(config_name, arguments)
                )
                if mistake is not None:
                    print(f"error: {mistake}", file=sys.stderr)
                    raise SystemExit(2)
                return command()
            except KeyboardInterrupt:  # before the work of a job begins, or between two of them
                given = format_command(config_name, _without_overwrite(arguments))
                print(
                    f"\nInterrupted. Finished files are kept; run `{given}` again to resume.", file=sys.stderr
                )
                raise SystemExit(130) from None

        return run

    return decorate


def find_wrong_group(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first config group that is given no name, as `trainer=null`; None if none is.

    Hydra ends in a traceback there.
    """
    for argument in arguments:
        given = re.fullmatch(r"\+{0,2}([\w/]+)(@[\w.]+)?=(null|true|false|[-+\d.]+|\{.*\}|)", argument)
        folder = find_config_dir() / given[1] if given else None
        if given and folder is not None and folder.is_dir():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            name = f"{given[1]}{given[2] or ''}"
            return f"{name}={given[3]}: give one of {options}, or ~{name} to leave it out"
    return None


def find_unreadable(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first `key=value` that Hydra's grammar does not read; None if nothing is.

    It has signs of its own, as = , ( ) { } : in a path, for which quotes are the way out.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        if not argument.isascii() and argument != argument.encode("utf-8", "replace").decode("utf-8"):
            shown = argument.encode("unicode_escape").decode("ascii")
            return f"{shown}: has bytes that are not UTF-8, so give another name or path"
        given = re.fullmatch(r"([+~]{0,2}[\w/.$@-]+)=(.*)", argument, re.DOTALL)
        if given is None or argument.startswith("-"):
            continue
        try:
            parser.parse_override(argument)
        except HydraException as error:
            quoted = given[2].replace('"', r"\"")
            reason = str(error).splitlines()[0]
            shown = " ".join(argument.splitlines())
            way_out = shlex.quote(f'{given[1]}="{quoted}"')
            return f"{shown}: cannot be read ({reason}); if the value is text, quote it twice: {way_out}"
    return None


def find_uncomposable(config_name: str, arguments: Sequence[str]) -> str | None:
    """What is wrong with arguments from which Hydra composes no configuration; None if it composes one.

    Hydra itself says it in several lines, with exit status 1. Of a sweep over choices of a config group each
    is composed, of any other the first value.
    """
    if any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments):
        return None  # as --help, or --config-dir
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parser = OverridesParser.create()
    try:
        choices = [[override] for override in overrides]
        if len(overrides) < len(arguments):
            choices = [_list_choices(parser.parse_override(override)) for override in overrides]
        first = [values[0] for values in choices]
        _compose(config_name, first)
        for place, values in enumerate(choices):
            for value in values[1:]:
                _compose(config_name, [*first[:place], value, *first[place + 1 :]])
    except (HydraException, ValueError) as error:
        return _describe_composing(config_name, overrides, error)
    return None


def _list_choices(override: Override) -> list[str]:
    """The overrides, each of one value, of a sweep: all for a config group, the first for anything else."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return values if (find_config_dir() / key.lstrip("+").partition("@")[0]).is_dir() else values[:1]


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    holder = GlobalHydra.instance()
    before, holder.hydra = holder.hydra, None  # a command may be called from another one
    try:
        folder = str(find_config_dir())
        with hydra.initialize_config_dir(version_base="1.3", config_dir=folder, job_name=config_name):
            return hydra.compose(config_name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = before


def _describe_composing(config_name: str, overrides: Sequence[str], error: Exception) -> str:
    """What Hydra says, in one line; of an unknown key, the keys that there are."""
    unknown = re.match(r"Could not override '([\w.]+)'\.", str(error))
    if unknown:
        culprits = [each for each in overrides if each.partition("=")[0] == unknown[1]]
        try:
            config = _compose(config_name, [each for each in overrides if each not in culprits])
            above = unknown[1].rpartition(".")[0]
            group = OmegaConf.select(config, above) if above else config
            known = ", ".join(sorted(map(str, group))) if isinstance(group, DictConfig) else ""
        except (HydraException, ValueError, OmegaConfBaseException):
            known = ""
        given = " ".join(culprits) or unknown[1]
        return f"{given}: no such setting" + (f", give one of {known}" if known else "")
    text = str(error).partition("Config search path:")[0]
    if isinstance(error.__cause__, OmegaConfBaseException):
        text += f"\n{str(error.__cause__).splitlines()[0]}"
    if options := re.search(r"Could not find '(.+)/(.+?)'\s+Available options in '.+':(.+)", text, re.DOTALL):
        group, name, known = options.groups()
        return f"{group}={name}: there is no {group}/{name}, give one of {', '.join(known.split())}"
    return " ".join(text.partition("See https:")[0].split())


def replace_unprintable() -> None:
    """Let output replace what the encoding of the terminal lacks, instead of ending a finished command.

    A log file that can no longer be written to does not interrupt the work either.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False


def format_command(entry_point: str, choices: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python", "-m", f"experiments.{entry_point}", *choices])


def format_given_command() -> str:
    """The command that was given, a sweep as a whole, as one repeats it to resume.

    Without `overwrite=true`: that would begin by replacing what is finished.
    """
    hydra_config = HydraConfig.get()
    name = str(hydra_config.job.name)
    if Path(sys.argv[0]).stem == name:
        arguments = sys.argv[1:]
    elif hydra_config.mode == RunMode.MULTIRUN:
        # A job in a process of its own knows its own choices; the sweep has written down all of them.
        sweep = Path(hydra_config.sweep.dir) / "multirun.yaml"
        given = OmegaConf.load(sweep).hydra.overrides.task if sweep.is_file() else hydra_config.overrides.task
        arguments = ["-m", *given]
    else:
        arguments = list(hydra_config.overrides.task)
    return format_command(name, _without_overwrite(arguments))


def _without_overwrite(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if not argument.partition("=")[0].endswith("overwrite")]


class OwnFolder(Callback):
    """Gives every run and every sweep a folder that no other command writes to.

    The folder of the configuration, which is named after the second, is made exclusively; where it is there
    already, its name gets the suffix -2, -3 and so on. A folder that the command line names
    (`hydra.run.dir`, `hydra.sweep.dir`) is used as it is.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        take_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        take_folder(config, "sweep")


def take_folder(config: DictConfig, mode: str) -> None:
    """Make the folder `hydra.MODE.dir` and check that it can be written to, before any work.

    Hydra turns exceptions of a callback into warnings, and shows those of its own with a traceback: a folder
    that cannot be made ends the command here.
    """
    key = f"hydra.{mode}.dir"
    folder = Path(str(config.hydra[mode].dir))
    is_named = any(choice.startswith(f"{key}=") for choice in config.hydra.overrides.hydra)
    try:
        if is_named:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = make_exclusively(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        way_out = f"{key}=FOLDER" if is_named else "paths.outputs=FOLDER"
        print(
            f"error: results cannot be written to {folder} ({error.strerror or error}): give another folder "
            f"with {way_out}",
            file=sys.stderr,
        )
        raise SystemExit(2) from error
    if not is_named:
        with read_write(config.hydra):
            config.hydra[mode].dir = str(folder)
            if mode == "sweep":  # each job is composed anew, from these
                quoted = str(folder).replace("'", r"\'")
                config.hydra.overrides.hydra.append(f"{key}='{quoted}'")


def make_exclusively(folder: Path) -> Path:
    """Make `folder`, or the first of `folder-2`, `folder-3`, ... that is not there, and return its path."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("endless")


def describe_mistake(error: BaseException | None) -> str | None:
    """What a user is told about their own mistake; None when the error is not one."""
    match error:
        case InstantiationException():
            return _describe_building(error)
        case MissingMandatoryValue():
            return f"{error.full_key} has no default: give {error.full_key}=..."
        case InterpolationResolutionError():
            return " ".join(str(error).split())
        case OSError() if error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        case ValueError() | OSError():
            return str(error)
        case MemoryError():
            reason = str(error) or "no more could be had"
            return f"there is not enough memory ({reason}): give smaller numbers, or fewer images at a time"
        case Exception() if type(error).__name__ in _ERRORS_OF_DATABASES:
            reason = str(error.__cause__ or error).splitlines()[0]
            return f"the database of the study cannot be used: {reason}; study.storage=... names another one"
        case Exception() if type(error).__name__ == "MisconfigurationException":
            # Lightning's, known by name: importing it here would slow down commands that do not train.
            return f"Lightning cannot do what the trainer settings ask for: {error} trainer=cpu runs anywhere"
    return None


def _describe_building(error: InstantiationException) -> str | None:
    """What is wrong with an object of the configuration; arguments are named as options."""
    mistake = describe_mistake(error.__cause__)
    if (
        mistake is None
        and isinstance(error.__cause__, TypeError)
        and "call to target 'lightning." in str(error)
    ):
        mistake = f"Lightning cannot do what the trainer settings ask for: {error.__cause__}"
    place = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    if mistake is not None and place and re.match(r"\w+=", mistake):
        return f"{place[1]}.{mistake}"
    return mistake
