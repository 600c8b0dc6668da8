"""Command-line arguments: former names, quotes around free text, and one line for what cannot be composed.

For such an error Hydra prints several lines and exits with status 1, or ends in a traceback.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Environment variable of Hydra: with "1", errors have their traceback.
FULL_ERROR = "HYDRA_FULL_ERROR"
# Former name of a setting -> name.
FORMER_NAMES = {"climb": "escalate", "risk": "guarantee"}


def rename_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with former names of settings replaced by their present names."""
    return [
        re.sub(
            rf"^([+~]{{0,2}})({'|'.join(FORMER_NAMES)})(?=[.=])",
            lambda match: match[1] + FORMER_NAMES[match[2]],
            argument,
        )
        for argument in arguments
    ]


def quote_free_text(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the values of `image` and `question` quoted for Hydra.

    A question may then have commas, brackets, quotes and equals signs and be typed as `question='...'` in the
    shell, which removes these quotes. A value that is still in quotes is left unchanged.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in ("image", "question") and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
            # Backslashes are doubled only where they would escape an interpolation or a quote.
            value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
            value = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
            value = re.sub(r"(\\*)\Z", lambda match: match[1] * 2, value, count=1)
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted


def find_wrong_argument(config_dir: Path, config_name: str, arguments: Sequence[str]) -> str | None:
    """Describe the first invalid argument in one line. None if a configuration can be composed."""
    return find_malformed(config_dir, arguments) or find_uncomposable(config_dir, config_name, arguments)


def find_malformed(config_dir: Path, arguments: Sequence[str]) -> str | None:
    """Describe the first argument that is wrong by itself, without composing. None if there is none."""
    return find_wrong_group(config_dir, arguments) or find_unreadable(arguments)


def find_wrong_group(config_dir: Path, arguments: Sequence[str]) -> str | None:
    """Describe the first config group without a name, as in `trainer=null`. None if there is none.

    Hydra ends in a traceback for these.
    """
    for argument in arguments:
        given = re.fullmatch(r"\+{0,2}([\w/]+)(@[\w.]+)?=(null|true|false|[-+\d.]+|\{.*\}|)", argument)
        folder = config_dir / given[1] if given else None
        if given and folder is not None and folder.is_dir():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            name = f"{given[1]}{given[2] or ''}"
            return f"{name}={given[3]}: give one of {options}, or ~{name} to leave it out"
    return None


def find_unreadable(arguments: Sequence[str]) -> str | None:
    """Describe the first `key=value` that Hydra's grammar cannot parse. None if there is none.

    Characters such as = , ( ) { } : in a path have to be quoted.
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


def find_uncomposable(config_dir: Path, config_name: str, arguments: Sequence[str]) -> str | None:
    """Describe why Hydra cannot compose a configuration from the arguments. None if it can.

    For a sweep over a config group every choice is composed, for any other sweep only the first value.
    """
    if any(argument.startswith("-") and argument not in ("-m", "--multirun") for argument in arguments):
        return None  # as --help, or --config-dir
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parser = OverridesParser.create()
    try:
        choices = [[override] for override in overrides]
        if len(overrides) < len(arguments):
            choices = [_list_choices(config_dir, parser.parse_override(override)) for override in overrides]
        first = [values[0] for values in choices]
        compose(config_dir, config_name, first)
        for position, values in enumerate(choices):
            for value in values[1:]:
                compose(config_dir, config_name, [*first[:position], value, *first[position + 1 :]])
    except (HydraException, ValueError) as error:
        return _describe_composing(config_dir, config_name, overrides, error)
    return None


@dataclass
class Composing:
    """Runs a command of `hydra.main` so that a configuration that cannot be composed ends in one line.

    Composing takes a fifth of a second, so that nothing is composed only to find errors. Hydra raises errors
    instead of printing them while `HYDRA_FULL_ERROR` is set: this sets it until `end` is called, by the
    function of the command.
    """

    config_dir: Path
    config_name: str
    is_raising: bool = False
    _before: str | None = None

    def run(self, command: Callable[[], Any], arguments: Sequence[str]) -> Any:
        """Call the command; SystemExit with status 2 if `arguments`, those in `sys.argv`, have an error."""
        self._before = os.environ.get(FULL_ERROR)
        self.is_raising = self._before != "1"
        if self.is_raising:
            os.environ[FULL_ERROR] = "1"
        try:
            return command()
        except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
            if not self.is_raising:
                raise
            mistake = _describe_composing(self.config_dir, self.config_name, arguments, error)
            print(f"error: {mistake}", file=sys.stderr)
            raise SystemExit(2) from None
        finally:
            self.end()

    def end(self) -> None:
        """Leave errors to Hydra from now on."""
        if self.is_raising:
            del os.environ[FULL_ERROR]
            if self._before is not None:
                os.environ[FULL_ERROR] = self._before
            self.is_raising = False


def _list_choices(config_dir: Path, override: Override) -> list[str]:
    """Expand a sweep into single overrides: all of a config group, only the first of anything else."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return values if (config_dir / key.lstrip("+").partition("@")[0]).is_dir() else values[:1]


def compose(
    config_dir: Path, config_name: str, overrides: Sequence[str], *, with_hydra: bool = False
) -> DictConfig:
    """Return the configuration of a command, independent of the Hydra state of a running command."""
    holder = GlobalHydra.instance()
    before, holder.hydra = holder.hydra, None  # a command may be called from another one
    try:
        with hydra.initialize_config_dir(
            version_base="1.3", config_dir=str(config_dir), job_name=config_name
        ):
            return hydra.compose(config_name, list(overrides), return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = before


def _describe_composing(
    config_dir: Path, config_name: str, overrides: Sequence[str], error: Exception
) -> str:
    """Convert an error of Hydra to one line, with the known keys for an unknown key."""
    unknown = re.match(r"Could not override '([\w.]+)'\.", str(error))
    if unknown:
        culprits = [override for override in overrides if override.partition("=")[0] == unknown[1]]
        try:
            rest = [override for override in overrides if override not in culprits]
            config = compose(config_dir, config_name, rest)
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
        hint = " (others come with pip install 'tokenscale[sweep]')" if group == "hydra/launcher" else ""
        return f"{group}={name}: there is no {group}/{name}, give one of {', '.join(known.split())}{hint}"
    return " ".join(text.partition("See https:")[0].split())
