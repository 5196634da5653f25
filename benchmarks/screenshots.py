"""Takes the README's picture: the UI with a plan that the embedded router wrote. `make screenshots`.

    python benchmarks/screenshots.py [FOLDER]

Writes ui.png, at most 300 kB, into FOLDER (default: docs). Needs Chromium (on PATH, or its path in CHROMIUM).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright
from serving import server, until_ok

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.browser import launch, watched

REQUEST = (
    "Compare bubble sort and merge sort: derive both running times, then measure them in Python on 10,000 numbers."
)
LIMIT = 300_000  # bytes: a README that loads at once


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with server(DEFAULT_TEMPERATURE="0") as (url, _), sync_playwright() as playwright:
        until_ok(url)
        browser = launch(playwright)
        with watched(browser, 1280, 1240) as page:
            page.goto(f"{url}/gradio/")
            page.get_by_label("Request").fill(REQUEST)
            page.get_by_role("button", name="Generate").click()
            expect(page.locator("#sums")).to_contain_text(re.compile(r"used \d+ of \d+ tokens"), timeout=300_000)
            expect(page.locator("#plan .rp")).to_be_visible()
            picture = page.screenshot()
        browser.close()
    if len(picture) > LIMIT:
        raise SystemExit(f"the picture has {len(picture)} bytes, more than {LIMIT}: take a smaller window")
    (folder / "ui.png").write_bytes(picture)
    print(f"{folder / 'ui.png'}: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
