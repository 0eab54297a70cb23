"""Pictures of the studio for the docs: every tab of the page, at the width of a desk and of a hand.

python tools/screenshots.py docs/pictures            # studio-TAB.png at 1280 pixels, studio-TAB-400.png at 400
python tools/screenshots.py /tmp/x --only Draw
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from scorefield.studio.page import serve

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TABS = {
    "Draw": ("Draw", "#way .sf-strip"),
    "Complete": ("Complete", "#completions img"),
    "How likely": ("How likely?", "#judged img"),
    "Between": ("Go between", "#path img"),
    "Restore": ("Restore", "#restored img"),
    "Samplers": ("Compare", "#compared svg"),
}
WIDTHS = {1280: "", 400: "-400"}
PATIENCE = 300_000


def small(path: Path) -> None:
    """The picture in at most 128 colours, a third of the bytes."""
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def press(page: Any, tab: str) -> None:
    """Open a tab, and run what it does."""
    page.get_by_role("tab", name=tab, exact=True).click()
    button, found = TABS[tab]
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_timeout(300)
    page.wait_for_selector(".sf-status b >> visible=true", timeout=PATIENCE)
    page.wait_for_selector(f"{found} >> visible=true", timeout=PATIENCE)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=[*TABS], choices=[*TABS])
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    blocks, address = serve(browser=False, wait=False)
    with sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector("#way .sf-strip", timeout=PATIENCE)
        for tab in chosen.only:
            press(page, tab)
            for width, suffix in WIDTHS.items():
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(500)
                path = chosen.out / f"studio-{tab.lower().replace(' ', '-')}{suffix}.png"
                page.screenshot(path=path, full_page=True)
                small(path)
                print(path, path.stat().st_size)
            page.set_viewport_size({"width": 1280, "height": 900})
        browser.close()
    blocks.close()


if __name__ == "__main__":
    main()
