"""Takes the README's pictures: the UI with what the embedded router wrote. `make screenshots`.

    python benchmarks/screenshots.py [FOLDER]

Writes ui.png, ui-compare.png and ui-benchmark.png, each at most 300 kB, into FOLDER (default: docs). Needs Chromium (on
PATH, or its path in CHROMIUM).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright
from serving import server, until_ok

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.browser import launch, watched

REQUEST = (
    "Compare bubble sort and merge sort: derive both running times, then measure them in Python on 10,000 numbers."
)
LIMIT = 300_000  # bytes: a README that loads at once
PATIENCE = 600_000


def plan(page: Page) -> None:
    page.get_by_label("Request", exact=True).fill(REQUEST)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#sums")).to_contain_text(re.compile(r"used \d+ of \d+ tokens"), timeout=PATIENCE)
    expect(page.locator("#aside .rb-budget")).to_be_visible()


def compare(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Request to compare").fill(REQUEST)
    page.get_by_label("Budget A").fill("300")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#figures tbody tr")).to_have_count(2, timeout=PATIENCE)


def benchmark(page: Page) -> None:
    page.get_by_role("tab", name="Benchmark").click()
    page.get_by_label("Rows", exact=True).fill("8")
    page.get_by_role("button", name="Run, or go on").click()
    expect(page.locator("#report table")).to_be_visible(timeout=PATIENCE)


PICTURES = {"ui.png": (plan, 1240), "ui-compare.png": (compare, 1100), "ui-benchmark.png": (benchmark, 900)}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with server(DEFAULT_TEMPERATURE="0") as (url, _), sync_playwright() as playwright:
        until_ok(url)
        browser = launch(playwright)
        for name, (work, height) in PICTURES.items():
            with watched(browser, 1280, height) as page:
                page.goto(f"{url}/gradio/")
                expect(page.locator("#head")).to_contain_text("embedded", timeout=PATIENCE)
                work(page)
                picture = page.screenshot()
            if len(picture) > LIMIT:
                raise SystemExit(f"{name} has {len(picture)} bytes, more than {LIMIT}: take a smaller window")
            (folder / name).write_bytes(picture)
            print(f"{folder / name}: {len(picture) / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
