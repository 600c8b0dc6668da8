"""README.md and docs/: every link leads somewhere, every page has a place, every command line is accepted."""

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from docs.site.pages import DOCUMENTS, list_documents, list_navigation, write_pages
from experiments.command_line.overrides import (
    compose,
    find_malformed,
    find_unreadable,
    find_wrong_argument,
    quote_free_text,
)
from experiments.command_line.script import find_config_dir, list_commands
from experiments.settings.check import check_settings
from tests.pages import take_blocks, write_blocks
from tests.paths import ROOT

CONF = find_config_dir()
PAGES = sorted(["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
# Words of an example that stand for something else.
PLACEHOLDER = re.compile(r"=NAME\b|\bCOMMAND\b")


def read_command_lines(page: str) -> list[tuple[str, list[str]]]:
    """Commands with their arguments: lines of shell blocks, and code in the text."""
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines = re.findall(r"(?<!`)`([^`]+)`", prose)
    for block in blocks:
        block = block.replace("\\\n", "")
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.M):
            block = block.replace(f"${name}", value)
        lines += block.splitlines()
    called = []
    for line in lines:
        given = re.match(r"(?:tokenscale |python -m experiments\.)(\w[\w-]*)(.*)", line, re.S)
        if made := re.fullmatch(r'make run ARGS="(.*?)"(?:\s+#.*)?', line):
            called.append(("run", shlex.split(made[1])))
        elif given and not PLACEHOLDER.search(line):
            called.append((given[1].replace("-", "_"), shlex.split(given[2], comments=True)))
    return called


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_accepted(page, tmp_path):
    search_path = []
    if take_blocks(ROOT / page, "yaml"):
        write_blocks(ROOT / page, tmp_path)
        search_path = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    for command, arguments in read_command_lines(page):
        assert command in list_commands(), command
        overrides = [*quote_free_text(arguments), *search_path]
        if search_path or any(argument.startswith("-") for argument in arguments):
            # Classes of a page are in no package here; a sweep has many configurations.
            assert find_wrong_argument(CONF, command, overrides) is None, (command, arguments)
        else:
            assert find_malformed(CONF, overrides) is None, arguments
            check_settings(command, compose(CONF, command, overrides))


GROUPS = {folder.relative_to(CONF).as_posix() for folder in CONF.rglob("*/")}


@functools.cache
def list_settings(command: str) -> frozenset[str]:
    """Return the names of all settings that a command has by default, and of the mappings that hold them."""

    def list_keys(node: Any, above: str = "") -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            yield f"{above}{key}"
            yield from list_keys(value, f"{above}{key}.")

    return frozenset(list_keys(OmegaConf.to_container(compose(CONF, command, []))))


def is_known(command: str, override: str) -> bool:
    """Whether a command has a setting by default, or a group with this option: composing would accept it."""
    name, _, value = override.partition("=")
    if name in GROUPS:
        return name in list_settings(command) and (CONF / name / f"{value}.yaml").is_file()
    return name in list_settings(command)


def is_accepted(overrides: list[str], commands: list[str]) -> bool:
    """Whether settings fit at least one command; configurations are composed only if that decides."""
    if find_unreadable(overrides) is not None:
        return False
    if any(all(is_known(command, override) for override in overrides) for command in commands):
        return True
    tops = {re.split(r"[.@/=]", override)[0] for override in overrides}
    fitting = [command for command in commands if tops <= list_settings(command) | GROUPS]
    return any(find_wrong_argument(CONF, command, overrides) is None for command in fitting)


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_text_are_accepted(page):
    """Code that consists of settings alone, as `shard=0/8`, fits at least one command."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    commands = sorted(list_commands(), key=lambda name: name not in ("run", "label", "tune"))
    for code in dict.fromkeys(re.findall(r"(?<!`)`([^`]+)`", prose)):
        words = code.split()
        if all(re.fullmatch(r"[a-z][\w.@/]*=\S+", word) for word in words) and not PLACEHOLDER.search(code):
            assert is_accepted(shlex.split(code), commands), code


def test_most_pages_have_command_lines():
    """The pattern that finds them finds them."""
    numbers = {page: len(read_command_lines(page)) for page in PAGES}
    assert numbers["docs/running.md"] > 10 and sum(map(bool, numbers.values())) > 10


@pytest.mark.long
def test_links_lead_to_files_and_every_page_is_in_the_navigation(tmp_path):
    write_pages(tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")}
    navigation = list_navigation()
    assert len(navigation) == len(set(navigation)) and set(navigation) == written


def test_dead_link_is_named(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n[there](page.md), [nowhere](nowhere.md), [elsewhere](https://example.org)\n")
    monkeypatch.setitem(DOCUMENTS, "index.md", str(page))
    with pytest.raises(ValueError, match=r": \S+page\.md: \S+nowhere\.md$"):
        write_pages(tmp_path / "docs")


@pytest.mark.parametrize("page", PAGES)
def test_page_begins_with_its_purpose(page):
    title, empty, purpose = (ROOT / page).read_text("utf-8").splitlines()[:3]
    assert title.startswith("# ") and not empty
    assert purpose.startswith(("This page ", "tokenscale is "))


def test_documents_are_those_of_the_repository():
    assert all((ROOT / source).is_file() for source in list_documents().values())
    assert {Path(source).name for source in list_documents().values()} >= {Path(page).name for page in PAGES}
