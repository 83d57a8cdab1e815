# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser, opened from disk: no error, nothing fetched; what moves does so, by keyboard too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from rekindle.cli import main
from tests.browsing import Opened, launched
from tests.report.made import Made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("pages")
    assert main(["report", str(made.run), "--images", "3", "--out", str(out / "one.html")]) == 0
    assert main(["report", str(made.run), str(made.base), "--images", "0", "--out", str(out / "two.html")]) == 0
    return {"one": out / "one.html", "two": out / "two.html"}


def opened(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", offline=True
    )
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.errors.append(message.text))
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.fetched.append(request.url))
    found.page.goto(path.as_uri())
    return found


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", ["one", "two"])
def test_the_page_opens_from_disk_without_errors_requests_or_sideways_scrolling(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    found = opened(browser, pages[name], width=width)
    assert found.errors == []
    assert [url for url in found.fetched if not url.startswith("data:")] == [pages[name].as_uri()]
    assert found.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert found.page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert found.page.locator(".verdict").first.is_visible()
    found.page.context.close()


def test_the_slider_shows_more_of_the_base_by_mouse_and_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["one"])
    card = found.page.locator(".card").first
    slider, after = card.locator("input[type=range]"), card.locator(".stack .after").first
    assert "50%" in after.evaluate("e => getComputedStyle(e).clipPath")
    slider.focus()
    found.page.keyboard.press("End")
    assert "100%" in after.evaluate("e => getComputedStyle(e).clipPath")
    assert slider.get_attribute("aria-valuetext") == "100 % base, 0 % adapted"
    card.locator(".stack").first.hover(position={"x": 1, "y": 5})
    assert int(slider.input_value()) <= 2
    assert found.errors == []
    found.page.context.close()


def test_headings_sort_numbers_as_numbers_and_back(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["one"])
    table = found.page.locator("#metric-table")
    head = table.locator("thead th", has_text="difference")

    def values() -> list[float]:
        return [
            float(v) for v in table.locator("tbody tr td:nth-child(5)").evaluate_all("c => c.map(e => e.dataset.value)")
        ]

    head.locator("button").focus()
    found.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending" and values() == sorted(values(), reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and values() == sorted(values())
    assert len(values()) > 3
    found.page.context.close()


def test_hovering_and_arrow_keys_show_the_values_of_all_panels_at_a_step(
    browser: Browser, pages: dict[str, Path]
) -> None:
    found = opened(browser, pages["one"])
    panels = found.page.locator(".panel")
    box = panels.first.locator("svg").first.bounding_box()
    assert box is not None and panels.count() > 5
    panels.first.locator(".plot").hover(position={"x": box["width"] * 0.6, "y": box["height"] / 2})
    step = panels.first.locator(".step").inner_text()
    assert step in ("step 3", "step 4")
    assert panels.nth(1).locator(".step").inner_text() == step
    shown = panels.first.locator(".key b").first.inner_text()
    row = panels.first.locator("tbody tr", has=found.page.locator(f"th:text-is('{step.split()[1]}')"))
    assert shown == row.locator("td").first.text_content()
    panels.first.locator(".plot").focus()
    found.page.keyboard.press("Home")
    assert panels.nth(1).locator(".step").inner_text() == "step 1"
    found.page.keyboard.press("ArrowRight")
    assert panels.nth(1).locator(".step").inner_text() == "step 2"
    assert "step 2" in (panels.first.locator(".plot").get_attribute("aria-valuetext") or "")
    found.page.context.close()


def test_in_print_both_sides_stand_beside_each_other(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["one"])
    found.page.emulate_media(media="print")
    before, after = (found.page.locator(f".card .{side}").first.bounding_box() for side in ("before", "after"))
    assert before is not None and after is not None
    assert after["x"] >= before["x"] + before["width"] and abs(after["y"] - before["y"]) < 1
    assert not found.page.locator(".slide").first.is_visible() and not found.page.locator("nav").is_visible()
    found.page.context.close()


def test_without_scripts_everything_is_still_there(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["one"].as_uri())
    before, after = (page.locator(f".card .{side}").first.bounding_box() for side in ("before", "after"))
    assert before is not None and after is not None and after["x"] > before["x"]
    assert not page.locator(".slide").first.is_visible()
    context.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["one", "two"])
def test_axe_finds_nothing_serious(browser: Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    found = opened(browser, pages[name], dark=dark)
    found.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    violations = Axe().run(found.page).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], v["help"], v["nodes"][0]["html"][:120]) for v in serious]
    found.page.context.close()
