"""The page in a real Chromium, without a network: sorting, filtering, keyboard, colours, two sizes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.browser import NAMES, chromium, find_chromium
from pipeline.report.claims import Claim
from pipeline.report.figures import write_figures
from pipeline.report.site import build_page

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SAID = {"statement": "s", "source": "a paper", "kind": "value", "tolerance": 0, "seeds": 0}
CLAIMS = tuple(
    Claim.model_validate({**SAID, "id": name, "measure": measure, "experiment": experiment, "value": value})
    for name, measure, experiment, value in (
        ("6 M", "params", "dart-36", 6e6),
        ("112 k", "params", "uniform-36", 112_000),
        ("40 %", "top1", "dart-36", 0.4),
        ("other", "params", "others", 7),
        ("9 %", "top1", "dart-36", 0.09),
    )
)
TABLE, SWEEP, CLAIMED = "#s1t", "#s1w", "#s1c"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="the library playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    with chromium(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, make_lab: Any) -> str:
    """A page with drawings, claims, an incomplete run, and a row without accuracy."""
    root = tmp_path_factory.mktemp("page")
    lab = make_lab(root, "digits")
    lab.edit("train/runs.json", lambda content: content["runs"][-2].update(status="failed: out of memory"))
    for path in (lab.results / "evaluate/gallery").glob("*.npz"):
        path.unlink()
    records = replace(lab.load(), claims=CLAIMS)
    drawings = write_figures(records, root / "report/digits/figures")
    (root / "report/index.html").write_text(build_page([records], root / "report", drawings, {}))
    return (root / "report/index.html").as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing must have gone wrong, and nothing been asked for but the page."""
    wrong: list[str] = []
    contexts = []

    def ask(request: Any) -> None:
        if not request.url.startswith("data:") and request.url.split("#")[0] != address:
            wrong.append(f"asks for {request.url}")

    def open_page(size: dict[str, int] = WIDE, fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport=size, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", ask)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        page.goto(address + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def names(page: Any, table: str) -> list[str]:
    """The names of the rows that are seen, from top to bottom."""
    rows = page.locator(f"{table} > tbody:not([hidden]) > tr:first-child > th")
    return list(rows.all_text_contents())


def header(page: Any, table: str, title: str) -> Any:
    return page.locator(f"{table} > thead th", has_text=title)


def test_a_table_is_sorted_by_its_headers_and_back(visit: Any) -> None:
    page = visit()
    plan = names(page, TABLE)
    assert plan == ["uniform-36", "uniform-64", "dart-36", "dart-16"]
    top1 = header(page, TABLE, "Top-1")
    expected = {
        "ascending": ["uniform-64", "uniform-36", "dart-36", "dart-16"],  # an unknown is last ...
        "descending": ["dart-36", "uniform-36", "uniform-64", "dart-16"],  # ... both ways
        "none": plan,
    }
    for direction, order in expected.items():
        top1.locator("button").click()
        assert top1.get_attribute("aria-sort") == direction
        assert names(page, TABLE) == order
    assert page.locator("[aria-sort=ascending], [aria-sort=descending]").count() == 0


def test_numbers_are_sorted_as_numbers_and_rows_keep_what_is_behind_them(visit: Any) -> None:
    page = visit()
    header(page, TABLE, "Images/s").locator("button").click()
    assert names(page, TABLE) == ["uniform-64", "dart-36", "uniform-36", "dart-16"]
    first = page.locator(f"{TABLE} > tbody").first
    assert "2267" not in first.inner_text()
    first.locator("details > summary").click()
    assert "token_budget 64" in first.locator(".inner").inner_text()


def test_the_keyboard_sorts_and_a_screen_reader_is_told(visit: Any) -> None:
    page = visit()
    status = page.locator(".tools output").first
    assert status.get_attribute("aria-live") == "polite"
    assert status.inner_text() == "4 of 4 rows, in the order of the plan"
    page.locator(f"{TABLE} > thead button").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert header(page, TABLE, "Tokenizer").get_attribute("aria-sort") == "ascending"
    assert names(page, TABLE)[:2] == ["dart-36", "dart-16"]
    assert status.inner_text() == "4 of 4 rows, sorted by Tokenizer, ascending"
    page.keyboard.press("Space")
    assert header(page, TABLE, "Tokenizer").get_attribute("aria-sort") == "descending"


def test_rows_are_filtered_by_words(visit: Any) -> None:
    page = visit()
    page.get_by_label("Filter rows").first.fill("DART 36")
    assert names(page, TABLE) == ["dart-36"]
    assert page.locator(".tools output").first.inner_text().startswith("1 of 4 rows")
    page.get_by_label("Filter rows").first.fill("nothing of the kind")
    assert names(page, TABLE) == []
    page.get_by_label("Filter rows").first.fill("")
    assert len(names(page, TABLE)) == 4
    page.get_by_label("Filter rows").nth(1).fill("confirmed")
    assert names(page, CLAIMED) == ["112 k"]


def test_claims_are_sorted_by_exact_figures_within_their_unit(visit: Any) -> None:
    page = visit()
    claimed = header(page, CLAIMED, "Claimed")
    claimed.locator("button").click()
    assert names(page, CLAIMED) == ["other", "112 k", "6 M", "9 %", "40 %"]
    assert (
        page.locator(".tools output").nth(1).inner_text() == "5 of 5 rows, sorted by Claimed, ascending, unit by unit"
    )
    claimed.locator("button").click()
    assert names(page, CLAIMED) == ["6 M", "112 k", "other", "40 %", "9 %"]
    header(page, CLAIMED, "Ours").locator("button").click()
    assert names(page, CLAIMED)[-1] == "other"  # it has none


def test_a_number_opens_what_is_behind_it_and_escape_closes_it(visit: Any) -> None:
    page = visit()
    cell = page.get_by_role("button", name="75.7 ± 7.1")
    cell.focus()
    page.keyboard.press("Enter")
    why = page.get_by_role("dialog", name="Top-1 (%) of dart-36")
    text = why.inner_text()
    assert "(79.500 + 80.000 + 67.500) / 3 = 75.667" in text
    for told in ("manifest sha256", "dvc repro train@digits", "token_budget 36", "Top-1, top-5: share of the 200"):
        assert told in text
    assert "multiply-accumulates" not in text  # that is what another column counts
    page.keyboard.press("Escape")
    assert why.count() == 0
    assert cell.evaluate("cell => cell === document.activeElement")


def test_the_points_of_a_drawing_are_one_stop_and_the_arrows_go_on(visit: Any) -> None:
    page = visit()
    drawing = page.locator(".living").first
    assert drawing.locator("[tabindex='0']").count() == 1
    drawing.locator("[tabindex='0']").focus()
    tip = page.locator(".tip")
    assert tip.inner_text() == drawing.locator(".point").first.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() == drawing.locator(".point").nth(1).get_attribute("aria-label")
    page.keyboard.press("End")
    assert tip.inner_text().startswith("dart-36: 75.7 ± 7.1 %")
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_pointing_near_a_point_names_it(visit: Any) -> None:
    page = visit()
    point = page.locator(".living").first.locator(".point").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 4, box["y"] + box["height"] / 2)
    assert page.locator(".tip").inner_text() == point.get_attribute("aria-label")


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_colours_follow_the_system_until_they_are_chosen(visit: Any, scheme: str, dark: bool) -> None:
    page = visit(color_scheme=scheme)
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number))"
    assert (page.evaluate(brightness) < 128) is dark
    button = page.get_by_role("button", name="Colours")
    for choice, is_dark in (("light", False), ("dark", True), ("auto", dark)):
        button.click()
        assert button.inner_text() == f"Colours: {choice}"
        assert (page.evaluate(brightness) < 128) is is_dark
    button.click()
    page.reload()
    assert page.get_by_role("button", name="Colours").inner_text() == "Colours: light"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(brightness) > 128


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_sticks_out_at_either_size(visit: Any, size: dict[str, int]) -> None:
    page = visit(size)
    page.locator("main details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.get_by_role("button", name="75.7 ± 7.1").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= size["width"]
    assert box["height"] <= size["height"]


def test_a_row_is_found_by_its_address(visit: Any) -> None:
    page = visit(fragment="#digits/sweep/dart-16-nano")
    row = page.locator("[id='digits/sweep/dart-16-nano']")
    row.wait_for(state="visible")  # although the sweep was folded away
    assert page.locator(SWEEP).is_visible()


def test_without_scripts_everything_is_there_but_the_tools(visit: Any) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator(".tools").count() == 0
    assert names(page, TABLE) == ["uniform-36", "uniform-64", "dart-36", "dart-16"]
    page.get_by_role("button", name="75.7 ± 7.1").click()
    assert page.get_by_role("link", name="Where it comes from").first.is_visible()
    assert page.locator(".point title").count() == 12 + 3 + 4 * 3
