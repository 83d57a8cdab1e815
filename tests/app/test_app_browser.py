# SPDX-License-Identifier: Apache-2.0
"""The app in a real browser: a click, the keyboard, bad input; no error, and nothing that leaves this machine."""

from __future__ import annotations

import re
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from rekindle.app.server import serving
from rekindle.cli import main
from rekindle.engine.watcher import LoggingWatcher
from rekindle.prompting.options import AppOptions
from tests.browsing import Opened, launched
from tests.prompting.made import read_picture

# what Gradio and what it stands on warn of when they are imported and serve; ours stay errors
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "ResourceWarning", "UserWarning")
]
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass
class Served:
    address: str
    contacted: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def _unused_port() -> int:
    """A port that no other process of tests begins with, as it would with a fixed one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def served(browser: Browser, adapted_run: Path) -> Iterator[Served]:
    """The app on a port of its own; every address that this process looks up or connects to is noted."""
    contacted: list[str] = []
    looked_up, connected = socket.getaddrinfo, socket.socket.connect

    def look_up(host: Any, *rest: Any, **named: Any) -> Any:
        contacted.append(str(host))
        return looked_up(host, *rest, **named)

    def connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            contacted.append(str(address[0]))
        connected(self, address)

    options = AppOptions(model=str(adapted_run), size_px=64, max_upload_mb=0.5, port=_unused_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        patch.setattr(socket.socket, "connect", connect)
        with serving(options, LoggingWatcher()) as page:
            assert page.shared == ""
            yield Served(page.address, contacted)


@pytest.fixture
def opened(browser: Browser, served: Served) -> Iterator[Opened]:
    found = open_page(browser, served)
    yield found
    found.page.context.close()


def open_page(browser: Browser, served: Served, *, width: int = 1280, dark: bool = False) -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
    )
    found = Opened(context.new_page())
    found.page.set_default_timeout(20_000)
    found.page.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.fetched.append(request.url))
    found.page.goto(served.address)
    found.page.wait_for_selector("#upload input[type=file]", state="attached")
    return found


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", path)
    expect(page.locator("#message")).to_contain_text(f"{path.name}: ", timeout=20_000)


def click(page: Page, row_share: float, column_share: float) -> None:
    image = page.locator("#picture img")
    image.wait_for()
    box = image.bounding_box()
    assert box is not None
    image.click(position={"x": box["width"] * column_share, "y": box["height"] * row_share})
    expect(page.locator("#message")).to_contain_text("Answered in", timeout=20_000)


def places(page: Page) -> list[str]:
    return re.findall(r"([+−] \(\d+, \d+\))", page.locator("#message").inner_text())


def downloaded_mask(page: Page, side: str, path: Path) -> NDArray[np.bool_]:
    with page.expect_download() as download:
        page.locator(f"#mask-{side}").click()
    download.value.save_as(path)
    return np.asarray(read_picture(path) == 255)


def test_a_click_gives_the_mask_that_the_command_line_gives(
    opened: Opened, served: Served, picture: Path, tmp_path: Path
) -> None:
    page = opened.page
    upload(page, picture)
    click(page, 0.25, 0.25)
    assert places(page) in (["+ (24, 32)"], ["+ (23, 31)"], ["+ (24, 31)"], ["+ (23, 32)"])
    row, column = re.findall(r"\d+", places(page)[0])
    for side, model in (("base", "base"), ("adapted", "run")):
        mask = downloaded_mask(page, side, tmp_path / f"{side}.png")
        words = shlex.split(page.locator(f"#command-{side} textarea, #command-{side} input").input_value())
        assert words[:2] == ["rekindle", "prompt"] and Path(words[2]).name == model
        assert words[words.index("--add") + 1 :][:2] == [row, column]
        words[words.index("scene.png")], words[-1] = str(picture), str(tmp_path / model)
        assert main(words[1:]) == 0
        assert np.array_equal(mask, read_picture(tmp_path / model / "mask.png") == 255)
        assert mask.shape == (96, 128) and mask[int(row), int(column)] and not mask.all()
    assert opened.errors == []
    assert {re.sub(r"^(https?://[^/]+/).*", r"\1", u) for u in opened.fetched if u.startswith("http")} == {
        served.address
    }
    assert {*served.contacted} <= {*LOCAL}, served.contacted


def test_the_keyboard_alone_adds_subtracts_and_undoes(opened: Opened, picture: Path, tmp_path: Path) -> None:
    page = opened.page
    upload(page, picture)
    page.get_by_label("Row").fill("20")
    page.get_by_label("Column").fill("30")
    page.get_by_label("Column").press("Enter")
    expect(page.locator("#message")).to_contain_text("+ (20, 30)")
    before = downloaded_mask(page, "adapted", tmp_path / "before.png")
    page.get_by_label("subtract (−)").focus()
    page.keyboard.press("Space")
    page.get_by_label("Row").fill("44")
    button = page.get_by_role("button", name="Choose this row and column")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("− (44, 30)")
    after = downloaded_mask(page, "adapted", tmp_path / "after.png")
    assert not (after & ~before).any() and after.sum() < before.sum()
    page.get_by_role("button", name="Undo last place").press("Enter")
    expect(page.locator("#message")).not_to_contain_text("− (44, 30)")
    assert np.array_equal(downloaded_mask(page, "adapted", tmp_path / "undone.png"), before)
    page.get_by_role("button", name="Clear places").press("Enter")
    expect(page.locator("#message")).to_contain_text("no place chosen")
    assert opened.errors == []


def test_a_higher_threshold_gives_a_smaller_mask_and_one_model_can_be_shown(
    opened: Opened, picture: Path, tmp_path: Path
) -> None:
    page = opened.page
    upload(page, picture)
    click(page, 0.3, 0.3)
    before = downloaded_mask(page, "base", tmp_path / "low.png")
    slider = page.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#command-base textarea, #command-base input")).to_have_value(re.compile(r"--threshold 0\.95"))
    after = downloaded_mask(page, "base", tmp_path / "high.png")
    assert not (after & ~before).any() and after.sum() < before.sum()
    page.get_by_label("adapted", exact=True).check()
    expect(page.locator("#contour-base")).to_be_hidden()
    expect(page.locator("#contour-adapted img")).to_be_visible()
    assert opened.errors == []


def test_tokens_heads_and_features_are_there(opened: Opened, picture: Path, tmp_path: Path) -> None:
    page = opened.page
    upload(page, picture)
    expect(page.locator("#features")).to_be_enabled(timeout=20_000)
    page.get_by_role("tab", name="Tokens (PCA)").click()
    for side in ("base", "adapted"):
        expect(page.locator(f"#tokens-{side} img")).to_be_visible()
    page.get_by_role("tab", name="Attention").click()
    expect(page.locator("figcaption")).to_have_text(
        ["base, head 0", "base, head 1", "adapted, head 0", "adapted, head 1"]
    )
    with page.expect_download() as download:
        page.locator("#features").click()
    download.value.save_as(tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as kept:
        assert kept["adapted_patches"].shape == kept["base_patches"].shape == (8, 11, 32)
        assert kept["base_attention"].shape == (2, 8, 11)


def test_bad_input_is_a_message_and_the_page_goes_on(opened: Opened, picture: Path, tmp_path: Path) -> None:
    page, message = opened.page, opened.page.locator("#message [role=alert]")
    page.get_by_role("button", name="Choose this row and column").click()
    expect(message).to_have_text("Open an image first.")
    upload(page, picture)
    click(page, 0.3, 0.3)
    page.get_by_label("Row").fill("4000")
    page.get_by_role("button", name="Choose this row and column").click()
    expect(message).to_have_text(re.compile("Row 4000, column .* lies outside the image; it has rows 0 to 95"))
    expect(page.locator("#contour-adapted img")).to_be_visible()
    broken, huge, notes = tmp_path / "broken.png", tmp_path / "huge.png", tmp_path / "notes.txt"
    broken.write_bytes(b"\x89PNG\r\n no more")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)).save(huge)
    notes.write_bytes(b"text")
    page.get_by_label(re.compile("Clear|Remove")).first.click()
    page.set_input_files("#upload input[type=file]", broken)
    expect(message).to_have_text(re.compile("broken.png: cannot be read as an image"))
    page.get_by_label(re.compile("Clear|Remove")).first.click()
    for path, told in ((huge, "exceed the maximum allowed size"), (notes, "Invalid file type: notes.txt")):
        page.set_input_files("#upload input[type=file]", path)
        expect(page.get_by_text(re.compile(told)).first).to_be_visible(timeout=20_000)
    upload(page, picture)
    click(page, 0.3, 0.3)
    assert len(places(page)) == 1


def test_a_file_that_goes_round_the_page_is_refused_by_the_server(served: Served) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + b"0" * 2**20
        + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{served.address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(request)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False)])
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(
    browser: Browser, served: Served, picture: Path, width: int, dark: bool
) -> None:
    found = open_page(browser, served, width=width, dark=dark)
    upload(found.page, picture)
    click(found.page, 0.3, 0.3)
    for tab in ("Mask", "Tokens (PCA)", "Attention"):
        found.page.get_by_role("tab", name=tab).click()
        violations = Axe().run(found.page).response["violations"]
        serious = [v for v in violations if v["impact"] in ("serious", "critical")]
        assert not serious, [(tab, v["id"], v["help"], v["nodes"][0]["html"][:120]) for v in serious]
        assert found.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert found.errors == []
    found.page.context.close()
