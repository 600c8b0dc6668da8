"""Blocks of code that stand in pages of docs/; checks of HTML pages that need no browser."""

import base64
import csv
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree


def take_blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The page's blocks of this language, each with the path that stands before it."""
    text = page.read_text("utf-8")
    return re.findall(rf"^`([^`\n]+)`:\n\n```{language}\n(.*?)^```$", text, re.M | re.S)


def write_blocks(page: Path, folder: Path) -> None:
    """The page's Python files and its YAML, each in its place below `folder`."""
    for language in ("python", "yaml"):
        blocks = take_blocks(page, language)
        assert blocks
        for path, text in blocks:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")


class Elements(HTMLParser):
    """The elements of an HTML page in order: tag, attributes, and the text inside, templates left out."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), "", tuple(open_.tag for open_ in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def select(self, *tags):
        return [element for element in self.elements if element.tag in tags]


VOID = ("meta", "img", "input", "br", "hr", "link", "col")


@dataclass
class Element:
    tag: str
    attributes: dict
    text: str
    inside: tuple


def check_structure(text):
    """What a page owes its readers, as far as it can be seen without a browser."""
    page = Elements(text)
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    labels = {label.attributes.get("for") for label in page.select("label")}
    for control in page.select("input", "select", "textarea"):
        is_labelled = control.attributes.get("id") in labels or "label" in control.inside
        assert is_labelled or control.attributes.get("aria-label"), control
    for button in page.select("button"):
        assert button.text.strip() or button.attributes.get("aria-label"), button
    assert all("alt" in image.attributes for image in page.select("img"))
    levels = [int(element.tag[1]) for element in page.select(*(f"h{level}" for level in range(1, 7)))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(level <= before + 1 for before, level in pairwise(levels))
    for link in page.select("a"):
        target = link.attributes["href"]
        assert not target.startswith("#") or target[1:] in ids, target
    urls = [
        element.attributes[name] for element in page.elements for name in URLS if name in element.attributes
    ]
    assert not any("//" in url for url in urls if not url.startswith("data:"))
    (policy,) = (element for element in page.elements if element.attributes.get("http-equiv"))
    assert policy.attributes["content"].startswith("default-src 'none'; ")
    for script in page.select("script"):
        # Text from data enters the page as text, never as HTML.
        assert "plotly.js v" in script.text or "innerHTML" not in script.text


URLS = ("src", "href", "action", "poster", "data")


def read_downloads(text):
    """The files that a page carries, by name, as bytes; every button has one."""
    page = Elements(text)
    files = {}
    for template in page.select("template"):
        name = template.attributes.get("data-name")
        if name is not None:
            is_binary = "data-base64" in template.attributes
            assert name not in files
            files[name] = base64.b64decode(template.text) if is_binary else template.text.encode()
    buttons = [
        element.attributes["data-file"]
        for element in page.select("button")
        if "data-file" in element.attributes
    ]
    assert sorted(buttons) == sorted(files)
    return files


def check_downloads(files):
    """Tables are CSV and LaTeX, figures are PDF and SVG."""
    for name, content in files.items():
        match name.rpartition(".")[2]:
            case "csv":
                rows = list(csv.reader(io.StringIO(content.decode())))
                assert len(rows) > 1 and len(set(map(len, rows))) == 1, name
            case "tex":
                lines = content.decode().splitlines()
                assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}", name
            case "pdf":
                assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF"), name
            case "svg":
                assert ElementTree.fromstring(content).tag.endswith("svg"), name
            case suffix:
                raise AssertionError(f"{name}: what is a {suffix}?")
