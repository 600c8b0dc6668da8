"""Take the picture of docs/demo.md from a running demo, with Playwright and Chromium.

`python -m docs.site.demo_picture URL FILE` asks about an offered picture, sets a budget, and writes a PNG
file. CHROMIUM in the environment is the path of a browser that is not Playwright's own.
"""

import importlib
import io
import os
import sys
from pathlib import Path

from PIL import Image

_NUMBER, _BUDGET, _CHOSEN = 4, "6", "9"  # a table of characters; the scale within the budget
_WIDTH, _HEIGHT, _COLORS = 1280, 900, 40


def take_picture(url: str) -> bytes:
    """Return the PNG file of the page after a question."""
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.goto(url)
        page.locator("button.thumbnail-item").nth(_NUMBER).click()
        question = page.get_by_label("Question", exact=True)
        page.wait_for_function("element => element.value", arg=question.element_handle())
        page.get_by_role("button", name="Ask at every scale").click()
        page.locator(".ts-views img").first.wait_for()
        page.get_by_label("budget", exact=True).click()
        number = page.locator("input[type=number]").first
        number.fill(_BUDGET)
        number.blur()
        page.locator(f".ts-chosen:has-text('{_CHOSEN}')").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until nothing moves
        content: bytes = page.screenshot(full_page=True)
        browser.close()
    return content


def main() -> None:
    url, path = sys.argv[1:]
    with Image.open(io.BytesIO(take_picture(url))) as image:
        image.convert("RGB").quantize(_COLORS).save(Path(path), optimize=True)


if __name__ == "__main__":
    main()
