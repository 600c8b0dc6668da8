"""Gather the pages of the documentation site in `build/docs`, where `mkdocs.yml` expects them.

`python -m docs.site.pages` (a part of `make docs`) copies the documents of the repository with links that fit
the site, and writes the reference: a page for each command, from the parts of its `--help`, and a page for
each Python module that the navigation of `mkdocs.yml` names, which mkdocstrings fills from the docstrings.
"""

import ast
import os
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from experiments.command_line.help import list_options, split_docstring
from experiments.command_line.overrides import compose
from experiments.command_line.script import find_config_dir, list_commands, read_docstring

ROOT = Path(__file__).resolve().parents[2]
# Page of the site -> document of the repository, besides the pages of docs/, which keep their names.
DOCUMENTS = {
    "index.md": "README.md",
    "documents.md": "docs/README.md",
    "outcomes/tiny_m3_scenes.md": "docs/outcomes/tiny_m3_scenes/README.md",
    "outcomes/tiny_native_scenes.md": "docs/outcomes/tiny_native_scenes/README.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/log.md": "LOG.md",
    "project/model_card.md": "m3_backbone/assets/tiny_m3/README.md",
    "project/model_card_native.md": "m3_backbone/assets/tiny_native/README.md",
    "project/training_log.md": "m3_backbone/assets/TRAINING_LOG.md",
}
ASSETS = ("site.css", "site.js", "favicon.svg", "iframe-worker.js")

_FENCE = re.compile(r"^ {0,3}```.*?^ {0,3}```[^\n]*$", re.M | re.S)
# Target of a link to another file of the repository.
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s]+(?=\))")


def write_pages(folder: Path) -> None:
    """Write all pages below an empty or missing folder. Raises ValueError for links to missing files."""
    documents = list_documents()
    page_of = {source: page for page, source in documents.items()}
    dead: list[str] = []
    for page, source in documents.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        targets = list_links(text, source)
        dead += [f"{source}: {target}" for target in targets if not (ROOT / target).is_file()]
        places = {target: page_of.get(target, f"files/{target}") for target in targets}
        _write(folder / page, move_links(text, source, page, places))
        for target, place in places.items():
            if target not in page_of and (ROOT / target).is_file():
                _write(folder / place, (ROOT / target).read_bytes())
    if dead:
        raise ValueError("links to files that do not exist: " + "; ".join(dead))
    for command in list_commands():
        _write(folder / "commands" / f"{command}.md", format_command_page(command))
    _write(folder / "commands" / "index.md", format_command_list())
    modules = [Path(page).stem for page in list_navigation() if re.fullmatch(r"api/\w+\.[\w.]+\.md", page)]
    for module in modules:
        _write(folder / "api" / f"{module}.md", format_module_page(module))
    _write(folder / "api" / "index.md", format_module_list(modules))
    for name in ASSETS:
        _write(folder / name, (Path(__file__).parent / name).read_bytes())


def list_documents() -> dict[str, str]:
    """Return page of the site -> path in the repository, for all pages that exist as documents."""
    own = {path.name: f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))}
    return DOCUMENTS | {page: source for page, source in own.items() if source not in DOCUMENTS.values()}


def list_navigation() -> list[str]:
    """Return the pages in the navigation of `mkdocs.yml`, in its order."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from walk(child)

    return list(walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))


def list_links(text: str, source: str) -> list[str]:
    """Return the files of the repository that a document links to, as paths from its root."""
    return [_resolve(link, source) for link in _LINK.findall(_FENCE.sub("", text))]


def move_links(text: str, source: str, page: str, places: Mapping[str, str]) -> str:
    """Return the text of a document with links that are right on its page.

    `places` maps the files that it links to to their places in the site.
    """

    def move(link: re.Match[str]) -> str:
        place = posixpath.relpath(places[_resolve(link[0], source)], posixpath.dirname(page) or ".")
        return place + "".join(link[0].partition("#")[1:])

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(move, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(move, text[end:])])


def format_command_page(command: str) -> str:
    """Return the page of a command: description, examples and options as in its help."""
    description, examples = split_docstring(command)
    config = compose(find_config_dir(), command, [], with_hydra=True)
    return "\n".join(
        [
            f"# tokenscale {command}",
            "",
            description,
            "",
            "```sh",
            *map(_put_comment_above, examples),
            "```",
            "",
            "## Options",
            "",
            f"These are the options of `tokenscale {command} --help` with their defaults, as you type them.",
            f"`tokenscale {command} --cfg job` prints the full configuration.",
            "",
            *(
                f"`{option.name}={option.value}`\n:   {option.meaning}\n"
                for option in list_options(command, config)
            ),
        ]
    )


def _put_comment_above(line: str) -> str:
    """Return a line of the shell with the comment at its end in a line of its own before it."""
    command, _, comment = line.partition("  #")
    return f"#{comment}\n{command.rstrip()}" if comment else command


def format_command_list() -> str:
    """Return the page that lists all commands."""
    return _format_list(
        "Commands",
        "This page lists all commands. Call one with `tokenscale COMMAND OPTION=VALUE ...`;\n"
        "[Running the commands](../running.md) explains how.",
        ("command", "what it does"),
        {command: read_docstring(command).splitlines()[0] for command in list_commands()},
    )


def format_module_page(module: str) -> str:
    """Return the page of a module, or of a package with its modules one after the other."""
    package = ROOT / module.replace(".", "/")
    if not package.is_dir():
        return f"# {module}\n\n::: {module}\n"
    parts = [
        f"## {module}.{path.stem}\n\n::: {module}.{path.stem}\n    options:\n      heading_level: 3\n"
        for path in sorted(package.glob("[!_]*.py"))
    ]
    return "\n".join([f"# {module}", "", f"{_read_purpose(module)}", "", *parts])


def format_module_list(modules: list[str]) -> str:
    """Return the page that lists the documented Python modules."""
    return _format_list(
        "Python modules",
        "This page lists the modules with a public interface; their pages are made from the docstrings.",
        ("module", "content"),
        {module: _read_purpose(module) for module in modules},
    )


def _format_list(title: str, purpose: str, header: tuple[str, str], pages: Mapping[str, str]) -> str:
    """Return a page with a table of pages beside it, by name, each with its description."""
    rows = [f"| [{name}]({name}.md) | {description} |" for name, description in pages.items()]
    return "\n".join(
        [f"# {title}", "", purpose, "", f"| {header[0]} | {header[1]} |", "| --- | --- |", *rows, ""]
    )


def _read_purpose(module: str) -> str:
    """Return the first paragraph of the docstring of a module or package, in one line."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.parent / f"{path.name}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def _resolve(link: str, source: str) -> str:
    """Return the path from the root of the repository of a relative link in a document."""
    return posixpath.normpath(str(PurePosixPath(source).parent / link.partition("#")[0]))


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def main() -> None:
    for name in [name for name in os.environ if name.startswith("TOKENSCALE_")]:
        del os.environ[name]  # the pages show defaults, and not this machine's folders
    folder = ROOT / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_pages(folder)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
