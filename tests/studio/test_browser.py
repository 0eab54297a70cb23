"""The page in a real browser: every tab is clicked through, and nothing is asked of another machine."""

import base64
import io
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scorefield as sf

CHROMIUM = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if os.access(p, os.X_OK)), None)
if CHROMIUM is None:
    pytest.skip("there is no chromium here (apt-get install chromium)", allow_module_level=True)
for needed in ("playwright", "gradio"):  # found here, and loaded by the fixture: they take seconds
    if find_spec(needed) is None:
        pytest.skip(f"there is no {needed} here (pip install {needed})", allow_module_level=True)

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
PATIENCE = 100_000  # of a machine with much else to do


class Desk:
    """The page, with what it asked for and what went wrong."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.asked, self.errors = [], []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda made: self.asked.append(made.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.page.wait_for_timeout(400)  # until its fields listen

    def fill(self, label, value):
        field = self.page.get_by_label(label, exact=True).locator("visible=true").first
        field.fill(str(value))
        field.blur()

    def press(self, button):
        self.page.get_by_role("button", name=button, exact=True).click()

    def run(self, button):
        """Press a button, and wait for what its work says at the end."""
        done = self.page.locator("[data-begun] >> visible=true")
        before = done.first.get_attribute("data-begun") if done.count() else ""
        self.press(button)
        self.page.wait_for_function(
            "before => [...document.querySelectorAll('[data-begun]')].some(e => e.offsetParent && e.dataset.begun !== before)",
            arg=before,
        )
        return done.first.inner_text()

    def pictures(self, place):
        """The pictures in a place of the page."""
        found = self.page.locator(f"{place} img").evaluate_all("all => all.map(e => e.src)")
        return [np.array(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))) for src in found]

    def lines(self):
        """The Python and the command of the open tab."""
        accordion = self.page.get_by_text("The same in Python and on the command line").locator("visible=true").first
        code = self.page.locator(".cm-content >> visible=true")
        if code.count() == 0:
            accordion.click()
        code.first.wait_for()
        return [code.nth(i).inner_text() for i in range(2)]

    def toast(self, words):
        found = self.page.locator(".toast-body").filter(has_text=re.compile(words)).first
        found.wait_for()
        text = found.inner_text()
        found.locator("button").first.click()
        return text


@pytest.fixture(scope="module")
def reached():
    """The addresses that this process connects to."""
    found, connect = [], socket.socket.connect

    def watched(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            found.append(address[0])
        return connect(self, address)

    socket.socket.connect = watched
    yield found
    socket.socket.connect = connect


@pytest.fixture(scope="module")
def desk(run, reached, tmp_path_factory):
    from playwright.sync_api import sync_playwright

    from scorefield.studio.page import serve

    folder = tmp_path_factory.mktemp("studio")
    blocks, address = serve(run, browser=False, folder=folder, wait=False)
    with sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        desk = Desk(browser.new_page(viewport={"width": 1280, "height": 900}), address)
        desk.page.goto(address)
        desk.page.locator("#way .sf-strip").wait_for()
        yield desk
        browser.close()
    blocks.close()


def test_draw_shows_what_its_lines_make(desk):
    desk.tab("Draw")
    desk.fill("Steps", 3)
    desk.fill("Seed", 7)
    assert "16 samples, 4 network calls each" in desk.run("Draw")
    python, command = desk.lines()
    assert command.startswith("scorefield sample")
    names = {}
    exec(python, names)
    from scorefield.studio.pictures import sheet

    (shown,) = desk.pictures("#samples")
    assert np.array_equal(shown, np.array(sheet(names["x"], -1.0, 1.0)))
    assert len(desk.pictures("#way")) == 16
    slider = desk.page.locator("#place input[type=range]")
    slider.fill("0")
    desk.page.get_by_text("time t = 1, step 0 of").wait_for()
    (noise,) = desk.pictures("#samples")
    assert np.array_equal(noise, np.array(sheet(names["path"][0], -1.0, 1.0)))


def test_long_work_tells_how_far_it_is_and_is_stopped(desk):
    desk.tab("Draw")
    desk.fill("Steps", 1000)
    desk.press("Draw")
    desk.page.get_by_text(re.compile("network call [1-9]")).locator("visible=true").first.wait_for()
    desk.press("Stop")
    desk.page.get_by_text(re.compile("Stopped after [0-9]+ network calls")).wait_for()
    desk.fill("Steps", 3)


def test_complete_what_is_covered(desk):
    desk.tab("Complete")
    desk.fill("Steps", 3)
    assert "4 completions" in desk.run("Complete")
    shown = desk.pictures("#completions")
    assert len(shown) == 8  # the picture, what is known, four samples, mean, deviation
    known = shown[1]
    assert known[:84].max() > 0  # the lower half is covered to begin with
    assert known[84:].max() == 0
    for sample in shown[2:6]:
        assert np.abs(sample[:84].astype(int) - shown[0][:84]).max() <= 1
    assert not np.array_equal(shown[2], shown[3])
    desk.press("Nothing")
    desk.press("Complete")
    assert "cover the part" in desk.toast("the whole picture is known")


def test_a_drawn_picture_is_judged(desk):
    desk.tab("How likely")
    canvas = desk.page.locator("[data-pad=judge] canvas")
    desk.page.locator("[data-pad=judge] [data-act=clear]").click()
    box = canvas.bounding_box()
    mouse = desk.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.25)
    mouse.down()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.75, steps=5)
    mouse.up()
    desk.page.get_by_label("Probes, whose spread is the error bar").locator("visible=true").first.fill("2")
    assert "network calls with 2 derivatives each" in desk.run("How likely?")
    drawn, _ = desk.pictures("#judged")
    assert drawn[84, 84] == 255  # a stroke down the middle
    assert drawn[84, 20] == 0
    python, command = desk.lines()
    assert command.startswith("scorefield likelihood")
    names = {}
    exec(python, names)
    figure = desk.page.locator("#judged .sf-figure").inner_text()
    assert figure == f"{float(names['bits']):.3f} ± {float(names['stderr']):.3f} bits per dimension"


def test_an_upload_that_is_no_picture_gets_one_line(desk, tmp_path):
    desk.tab("How likely")
    before = desk.page.evaluate("window.scorefieldPads.read('judge')")
    letter, photo = tmp_path / "letter.png", tmp_path / "photo.png"
    letter.write_text("From: someone\n")
    Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))).save(photo)
    chooser(desk, "judge", letter)
    text = desk.toast("letter.png")
    assert "letter.png is not an image" in text
    assert "Traceback" not in text
    assert str(tmp_path) not in text
    assert desk.page.evaluate("window.scorefieldPads.read('judge')") == before
    chooser(desk, "judge", photo)
    assert "cropped and resized from 60 x 40 to 28 x 28" in desk.toast("photo.png was")
    desk.page.wait_for_function("before => window.scorefieldPads.read('judge') !== before", arg=before)


def chooser(desk, pad, path: Path):
    with desk.page.expect_file_chooser() as waiting:
        desk.page.locator(f"#upload-{pad}").click()
    waiting.value.set_files(str(path))


def test_between_two_pictures_with_a_slider(desk):
    desk.tab("Between")
    assert "9 points" in desk.run("Go between")
    desk.page.get_by_text("50 % of the way").wait_for()
    middle = desk.pictures("#path")[0]
    desk.page.locator("#along input[type=range]").fill("0")
    desk.page.get_by_text("the first end").wait_for()
    first = desk.pictures("#path")[0]
    assert not np.array_equal(first, middle)
    digit = sf.digits(train=False)[1][0].numpy()  # what the pad begins with
    assert np.abs(first[6::12, 6::12].astype(int) - digit).mean() < 8


def test_restore_through_an_operator(desk):
    desk.tab("Restore")
    desk.fill("Steps", 3)
    assert "dB" in desk.run("Restore")
    assert len(desk.pictures("#restored")) == 8
    python, command = desk.lines()
    assert "--operator downsample:4" in command
    assert "sf.inverse.restore" in python


def test_compare_samplers(desk):
    desk.tab("Samplers")
    desk.fill("Numbers of steps", "2, 4")
    desk.fill("Starts", 2)
    assert "8 runs" in desk.run("Compare")
    assert desk.page.locator("#compared svg polyline").count() == 4
    assert desk.page.locator("#compared tbody tr").count() == 4
    assert "no command" in desk.lines()[1]


def test_a_model_that_is_none_leaves_the_one_that_is_open(desk):
    name = desk.page.locator("#about b").inner_text()
    field = desk.page.locator("#model input")
    field.fill("nowhere")
    field.press("Enter")
    assert "nowhere" in desk.toast("nowhere")
    assert desk.page.locator("#about b").inner_text() == name


def test_another_model_with_classes_to_be_guided_to(desk, classes):
    field = desk.page.locator("#model input")
    field.fill(classes)
    field.press("Enter")
    desk.page.locator("#about").get_by_text("10 classes").wait_for()
    desk.tab("Draw")
    desk.page.get_by_text("Guidance sharpens a class").wait_for()
    desk.page.get_by_label("Class", exact=True).click()
    desk.page.get_by_role("option", name="3", exact=True).click()
    desk.fill("Guidance", 2)
    desk.fill("Steps", 4)
    assert "16 samples" in desk.run("Draw")
    command = desk.lines()[1]
    assert command.startswith("scorefield generate")
    assert "--label 3" in command
    assert "--guidance 2" in command


def test_nothing_leaves_this_machine(desk, reached):
    """Runs last: all that the browser asked for, and all that the server connected to."""
    assert len(desk.asked) > 20
    allowed = (desk.address, desk.address.replace("http", "ws"), "data:", "blob:")
    assert [url for url in desk.asked if not url.startswith(allowed)] == []
    assert [host for host in reached if host not in ("127.0.0.1", "::1", "localhost")] == []
    assert desk.errors == []


def test_a_narrow_page_does_not_scroll_sideways(desk):
    desk.page.set_viewport_size({"width": 400, "height": 800})
    desk.page.wait_for_function("document.documentElement.scrollWidth <= 400", timeout=20_000)
