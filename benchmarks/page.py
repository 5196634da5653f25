"""What the page costs: the first paint, a stop, and the browser's own work while a plan streams.

    python benchmarks/page.py [ROUNDS]

Serves the embedded model on loopback, anew for each round. Needs Chromium (on PATH, or its path in CHROMIUM). The
page's work is how long its main thread is busy, as Chromium counts it (`TaskDuration`), for each second of the stream.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import CDPSession, Page, expect, sync_playwright
from serving import server, until_ok

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.browser import launch, watched

REQUEST = "Derive the period of a pendulum, look the constants up and simulate it in Python."
PATIENCE = 120_000  # ms


def running(url: str) -> int:
    return int(httpx.get(f"{url}/health").json()["queue"]["running"])


def metric(session: CDPSession, name: str) -> float:
    """What Chromium counts of a page; `TaskDuration` are the seconds of work of its main thread so far."""
    return float(
        next(each["value"] for each in session.send("Performance.getMetrics")["metrics"] if each["name"] == name)
    )


def one(page: Page, url: str) -> dict[str, float]:
    began = time.monotonic()
    page.goto(f"{url}/gradio/")
    request = page.get_by_label("Request", exact=True)
    request.wait_for(timeout=PATIENCE)
    found = {"first useful paint, s": time.monotonic() - began}
    expect(page.locator("#head")).to_contain_text("embedded", timeout=PATIENCE)
    until_ok(url)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    request.fill(REQUEST)

    page.get_by_role("button", name="Generate").click()
    while not running(url):
        time.sleep(0.01)
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="Stop").click()
    stopped = time.monotonic()
    while running(url):
        time.sleep(0.01)
    found["stop → its slot is free, s"] = time.monotonic() - stopped
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=PATIENCE)
    found["stop → the page says so, s"] = time.monotonic() - stopped

    page.wait_for_timeout(1000)
    before, began = metric(session, "TaskDuration"), time.monotonic()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#sums")).to_contain_text("finish: stop", timeout=PATIENCE)
    seconds = time.monotonic() - began
    work = metric(session, "TaskDuration") - before
    found["the page's work during a plan, % of a core"] = 100 * work / seconds
    found["the plan, s"] = seconds
    return found


def main() -> None:
    rows = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
            with server() as (url, _), watched(browser, 1280, 900) as page:
                until_ok(url)
                rows.append(one(page, url))
        browser.close()
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"{name}: median {statistics.median(values):.2f}, worst {max(values):.2f} of {len(values)}")


if __name__ == "__main__":
    main()
