"""The page in headless Chromium: quiet, drawn, searchable, narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browse, find_chromium

from made_run import HOSTILE, add_expert, make_check, make_comparison, make_run, make_selection
from nacd.config import DataConfig, DistillConfig, OuterLoopConfig
from nacd.report.page import ReportConfig, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
]
DRAWN = "document.documentElement.dataset.drawn"
CHARTS = 5
VISIBLE = "[...document.querySelectorAll('.row')].filter((r) => r.getClientRects().length)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outer = OuterLoopConfig(objective="trajectory", outer_steps=4, expert_start=8, expert_ahead=4)
    config = DistillConfig(data=DataConfig(data="d.jsonl"), outer=outer)
    folder = tmp_path_factory.mktemp("runs") / "run"
    longest = "unbroken" * 40
    make_run(folder, ("What is ice?", "Name a bird.", *HOSTILE, longest), config=config)
    add_expert(folder, 0, total=10, every=4, held_out=True)
    return write_report(ReportConfig(folder))


@pytest.fixture
def opened(page: Page, file: Path) -> Page:
    page.requests.clear()
    page.complaints.clear()
    page.scheme("light")
    page.size(1280, 900)
    page.open(file, DRAWN)
    return page


def test_the_driver_sees_requests_and_complaints(page: Page, tmp_path: Path) -> None:
    page.requests.clear()
    page.complaints.clear()
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); nowhere();</script>"
    )
    page.open(bad, "true")
    assert "http://127.0.0.1:9/x.png" in page.requests
    assert any("no" in text for text in page.complaints)
    assert any("nowhere is not defined" in text for text in page.complaints)


def test_it_loads_quietly_and_asks_for_nothing(opened: Page, file: Path) -> None:
    assert opened.ask("performance.getEntriesByType('resource').length") == 0
    assert opened.complaints == []
    assert [url for url in opened.requests if url != file.as_uri()] == []


def test_a_request_from_inside_is_refused(opened: Page) -> None:
    """The page's own policy stops even a script that slipped in."""
    opened.ask(
        "window.blocked = 0;"
        "addEventListener('securitypolicyviolation', () => { window.blocked += 1; });"
        "new Image().src = 'http://127.0.0.1:9/x.png'; fetch('http://127.0.0.1:9/').catch(() => 0)"
    )
    opened.wait("window.blocked === 2")


def test_hostile_rows_do_nothing(opened: Page) -> None:
    opened.ask("document.querySelectorAll('.text').forEach((t) => t.dispatchEvent("
               "new MouseEvent('mouseover', {bubbles: true})))")  # fmt: skip
    assert opened.ask("window.taken") is None
    assert opened.ask("document.querySelectorAll('.row').length") == 13
    shown = opened.ask("document.querySelector('#rows').textContent")
    for text in HOSTILE:
        assert text in shown


def test_charts_are_drawn(opened: Page) -> None:
    assert opened.ask(DRAWN) == str(CHARTS)
    empty = opened.ask(
        "[...document.querySelectorAll('.plot')].filter((p) =>"
        " !p.querySelector('.main-svg') || !p.querySelector('.trace path')"
        " || p.querySelector('.main-svg').getBoundingClientRect().height < 100).map((p) => p.id)"
    )
    assert empty == []
    names = "[...document.querySelectorAll('#chart-results .ytick text')].map((t) => t.textContent)"
    assert set(opened.ask(names)) >= {"row seeds", "row text"}
    titles = opened.ask("[...document.querySelectorAll('.ytitle')].map((t) => t.textContent)")
    assert titles.count("nats per token") >= 1


def test_intervals_and_changed_tokens_are_to_be_seen(opened: Page) -> None:
    width = "Math.max(...[...document.querySelectorAll('#chart-results .xerror')].map((e) => "
    assert opened.ask(width + "e.getBoundingClientRect().width))") > 5
    marked = opened.ask(
        "[...document.querySelectorAll('#rows article ins')].map((e) => "
        "[e.textContent.length, getComputedStyle(e).backgroundColor])"
    )
    assert marked
    assert all(length and colour != "rgba(0, 0, 0, 0)" for length, colour in marked)


def test_search_filters(opened: Page) -> None:
    def search(text: str) -> int:
        opened.ask(
            f"document.getElementById('search').value = {text!r};"
            "document.getElementById('search').dispatchEvent(new Event('input'))"
        )
        return opened.ask(f"{VISIBLE}.length")

    assert search("name BIRD") == 1
    assert opened.ask("document.getElementById('count').textContent") == "1 of 13 rows"
    assert search("<script>") == 2
    assert search("no such words") == 0
    assert not opened.ask("document.getElementById('nothing').hidden")
    assert search("") == 13


def test_rows_are_sorted_and_unchanged_ones_hidden(opened: Page) -> None:
    def order() -> list[int]:
        return opened.ask(f"{VISIBLE}.map((r) => Number(r.dataset.number))")

    def sort(by: str) -> None:
        opened.ask(
            f"document.getElementById('sort').value = {by!r};"
            "document.getElementById('sort').dispatchEvent(new Event('change'))"
        )

    assert order() == [13, 11, 9, 7, 5, 3, 1, 2, 4, 6, 8, 10, 12], "the most changed first"
    sort("number")
    assert order() == list(range(1, 14))
    sort("changed")
    opened.ask("document.getElementById('only').click()")
    assert order() == [13, 11, 9, 7, 5, 3, 1]
    sort("distance")
    assert order() == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("width", [390, 320])
def test_a_narrow_screen_does_not_overflow(page: Page, file: Path, width: int) -> None:
    page.size(width, 800, mobile=True)
    page.open(file, DRAWN)
    fits(page, width)


def fits(page: Page, width: int) -> None:
    wide = page.ask(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.ask("document.documentElement.scrollWidth") == width
    assert page.ask("innerWidth") == width  # a page that overflows is zoomed out of


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_comparison_of_hostile_names(page: Page, tmp_path: Path, number: int) -> None:
    """Drawn, quiet, whole on a narrow screen; what the names hold is text."""
    page.requests.clear()
    page.complaints.clear()
    file = write_report(ReportConfig(make_comparison(tmp_path / "grid", HOSTILE[number])))
    page.size(390, 800, mobile=True)
    page.open(file, DRAWN)
    assert page.ask(DRAWN) == "2"
    assert page.ask("window.taken") is None
    assert page.complaints == []
    assert [url for url in page.requests if url != file.as_uri()] == []
    shown = page.ask("document.querySelector('main').textContent")
    assert f"RDS+ failed: {HOSTILE[number]}" in shown
    assert "Token boundaries that this model's tokenizer keeps: NACD text 75%." in shown
    assert "to choose is repaid: LESS 3, NACD text 3." in shown
    fits(page, 390)


@pytest.mark.parametrize("name", ["RDS+", *HOSTILE])
def test_a_check_of_hostile_names(page: Page, tmp_path: Path, name: str) -> None:
    """Drawn, quiet, whole on a narrow screen; what the names hold is text."""
    page.requests.clear()
    page.complaints.clear()
    file = write_report(ReportConfig(make_check(tmp_path / "run", name)))
    page.size(390, 800, mobile=True)
    page.open(file, DRAWN)
    assert page.ask(DRAWN) == "2"
    assert page.ask("window.taken") is None
    assert page.complaints == []
    assert [url for url in page.requests if url != file.as_uri()] == []
    assert f"Choose by {name}: give --minutes 30" in page.ask(
        "document.querySelector('h1').textContent"
    )
    assert page.ask("document.querySelector('h1 .flag').getClientRects().length") == 1
    fits(page, 390)
    scrolled = (
        "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
    )
    assert name != "RDS+" or page.ask(f"{scrolled}.length") == 0, "no table is wider than that"
    ticks = "[...document.querySelectorAll('#chart-curve .xtick text')].map((t) => t.textContent)"
    assert page.ask(ticks) == ["26", "105", "2,108"]


@pytest.mark.parametrize("name", ["mine", HOSTILE[1], "unbroken" * 60])
def test_chosen_rows_of_hostile_names(page: Page, tmp_path: Path, name: str) -> None:
    """Drawn, quiet, sorted and searched, whole on a narrow screen."""
    page.requests.clear()
    page.complaints.clear()
    file = write_report(ReportConfig(make_selection(tmp_path / "run", name)))
    page.size(390, 800, mobile=True)
    page.open(file, DRAWN)
    assert page.ask(DRAWN) == "1"
    assert page.ask("window.taken") is None
    assert page.complaints == []
    assert [url for url in page.requests if url != file.as_uri()] == []
    fits(page, 390)
    order = f"{VISIBLE}.map((r) => Number(r.dataset.number))"
    assert page.ask(order) == list(range(1, 13))
    page.ask(
        "document.getElementById('sort').value = 'tokens';"
        "document.getElementById('sort').dispatchEvent(new Event('change'))"
    )
    assert page.ask(order) == list(range(12, 0, -1))
    page.ask(
        "document.getElementById('search').value = 'user:';"
        "document.getElementById('search').dispatchEvent(new Event('input'))"
    )
    assert page.ask(f"{VISIBLE}.length") == 6


def test_a_table_scrolls_in_its_own_box(page: Page, tmp_path: Path) -> None:
    file = write_report(ReportConfig(make_run(tmp_path / "run")))
    page.size(390, 800, mobile=True)
    page.open(file, DRAWN)
    box = "document.querySelector('#results .scroll')"
    assert page.ask(f"{box}.scrollWidth > {box}.clientWidth")
    fits(page, 390)
    page.ask(f"{box}.scrollLeft = 999")
    assert page.ask(f"{box}.scrollLeft") > 0
    assert page.ask("document.documentElement.scrollLeft") == 0


def test_charts_follow_the_window(opened: Page) -> None:
    width = "document.querySelector('#chart-results .main-svg').getBoundingClientRect().width"
    before = opened.ask(width)
    opened.size(500, 800)
    opened.wait(f"{width} < 500")
    assert before > 900


def test_charts_and_page_follow_the_colour_scheme(opened: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    label = "getComputedStyle(document.querySelector('#chart-results .ytick text')).fill"
    light = opened.ask(paper), opened.ask(label)
    opened.scheme("dark")
    opened.wait(f"{label} !== {light[1]!r}")
    assert opened.ask(paper) != light[0]
    assert opened.ask("matchMedia('(prefers-color-scheme: dark)').matches")
    assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Page, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG 2, AA) for every colour of text on what lies under it."""
    opened.scheme(scheme)
    names = ("paper", "raised", "learned", "replaced", "ink", "muted", "accent", "second")
    found = {
        name: opened.ask(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        )
        for name in names
    }
    pairs = [("ink", "paper"), ("ink", "raised"), ("ink", "learned"), ("ink", "replaced")]
    pairs += [("muted", "paper"), ("accent", "paper"), ("second", "paper")]
    for text, ground in pairs:
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two `#rrggbb` colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
