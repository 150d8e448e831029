"""The page in a real browser: what a reader does with it, with nothing loaded and no error on the way."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from test_page import page_of, some_results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = (1280, 900), (375, 800)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed: apt-get install chromium")


class Visit:
    """An open page with everything that it asked for and complained about."""

    def __init__(self, browser, address: str, size: tuple[int, int] = WIDE, colours: str = "light"):
        self.address = address
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=colours, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}") or dialog.dismiss())
        self.page.goto(address)
        self.page.wait_for_selector("#chart-time .main-svg")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"{selector}:visible").all_inner_texts()]

    def close(self) -> None:
        """The page asked for itself alone and had nothing to complain about."""
        self.context.close()
        outside = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        assert outside == [self.address]
        assert self.complaints == []


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    return page_of(results, some_results(results, maps=4))


@pytest.fixture
def visit(browser, path) -> Iterator[Visit]:
    opened = Visit(browser, path.as_uri())
    yield opened
    opened.close()


TABLE = "#table-test_minivoc"


def test_sorting_by_pointer_and_by_keyboard(visit):
    heads = f"{TABLE} table[data-layout=papers] thead th"
    assert visit.texts(heads) == ["Metric", "Grad-CAM", "SISE", "RISE", "uniform control"]
    heading = visit.page.locator(f"{TABLE} table[data-layout=papers] th.sortable").first
    heading.get_by_role("button").click()
    assert visit.texts(heads) == ["Metric", "SISE", "Grad-CAM", "RISE", "uniform control"]
    assert heading.get_attribute("aria-sort") == "descending"
    visit.page.keyboard.press("Enter")  # the button has the focus
    assert visit.texts(heads) == ["Metric", "uniform control", "RISE", "Grad-CAM", "SISE"]
    assert heading.get_attribute("aria-sort") == "ascending"
    visit.page.keyboard.press("Space")
    assert visit.texts(heads) == ["Metric", "Grad-CAM", "SISE", "RISE", "uniform control"]
    assert heading.get_attribute("aria-sort") == "none"


def test_values_move_with_their_methods(visit):
    visit.page.locator("input[name=layout][value=methods]").check()
    heading = visit.page.locator(f"{TABLE} table[data-layout=methods] th.sortable").nth(1)  # drop: lower is better
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    rows = visit.page.locator(f"{TABLE} table[data-layout=methods] tbody tr").all()
    shown = [[row.locator("th").inner_text().split()[0], row.locator(".value").nth(1).inner_text()] for row in rows]
    assert shown == [["SISE", "30.0"], ["Grad-CAM", "50.0"], ["RISE", "60.0"], ["uniform", "70.0"]]


def test_filters(visit):
    visit.page.select_option("#filter-dataset", "minicoco")
    assert visit.texts("article.table h3") == ["A table of minicoco"]
    assert visit.page.locator("#filter-status").inner_text() == "1 of 3 tables shown."
    assert "minicoco" in visit.page.locator("#chart-time h3").inner_text()
    assert visit.texts("#gallery-group option") in ([], ["ResNet-50 on minicoco"])
    visit.page.locator("#filter-methods summary").click()
    visit.page.locator("#filter-methods input[value=sise]").uncheck()
    heads = "#table-test_minicoco table[data-layout=papers] thead th"
    assert visit.texts(heads) == ["Metric", "Grad-CAM", "RISE", "uniform control"]
    assert "SISE" not in " ".join(visit.texts("#gallery-cards strong"))
    visit.page.locator("#methods-none").click()
    assert visit.texts("#no-tables") == ["No table has what the filters ask for. Show all"]
    visit.page.keyboard.press("Escape")
    visit.page.locator("#filters-reset").click()
    playwright.expect(visit.page.locator("article.table:not([hidden])")).to_have_count(3)


def test_gallery_opens_an_item_by_keyboard(visit):
    assert visit.texts("#gallery-cards strong")[:3] == ["Image and ground truth", "SISE", "SISE, mu = 0.3"]
    card = visit.page.locator("#gallery-cards .card").nth(1)
    card.focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.locator("#viewer").get_attribute("open") is not None
    assert visit.texts("#viewer-title") == ["SISE: cat in 000001"]
    assert visit.texts("#viewer-values tr")[0].split() == ["EBPG", "↑", "64.5", "%", "1", "of", "5"]
    sizes = (
        "[...document.querySelectorAll('#viewer img')].map((image) => image.decode().then(() => image.naturalWidth))"
    )
    assert all(visit.page.evaluate(f"Promise.all({sizes})"))
    visit.page.keyboard.press("ArrowRight")
    assert visit.texts("#viewer-title") == ["SISE, mu = 0.3: cat in 000001"]
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#viewer").get_attribute("open") is None
    assert card.evaluate("card => card === document.activeElement")


def test_gallery_by_image_class_and_metric(visit):
    visit.page.select_option("#gallery-pair", index=1)
    assert visit.page.locator("#gallery-status").inner_text().startswith("000001: </script>")
    visit.page.select_option("#gallery-metric", "drop")
    order = visit.texts("#gallery-cards strong")[1:]
    assert (order[0], order[-1]) == ("SISE", "uniform")  # lower is better
    visit.page.locator("#gallery-strength").fill("20")
    assert visit.page.locator("#gallery-cards .map").first.evaluate("image => getComputedStyle(image).opacity") == "0.2"
    visit.page.locator("#gallery-outline").uncheck()
    assert visit.page.locator("#gallery-cards .outline:visible").count() == 0


def test_gallery_shows_worst_and_best_of_a_method(visit):
    visit.page.select_option("#gallery-view", "method")
    visit.page.select_option("#gallery-method", "SISE")
    assert visit.texts("#gallery-cards h3") == ["Worst by EBPG", "Best by EBPG"]
    cards = [card.splitlines()[-1] for card in visit.texts("#gallery-cards .card")]
    assert cards == ["EBPG 64.5 %", "EBPG 65.5 %", "EBPG 67.5 %", "EBPG 66.5 %"]


def test_charts_follow_the_choice_of_metric(visit):
    assert visit.page.locator("#chart-time h3").inner_text().startswith("EBPG against run time")
    visit.page.select_option("#chart-metric", "drop")
    assert visit.page.locator("#chart-time h3").inner_text().startswith("Drop against run time")
    visit.page.locator("#chart-time summary").click()
    rows = visit.texts("#chart-time tbody tr")
    assert rows[0].split()[:3] == ["Grad-CAM", "0.01", "50.0"]
    assert "SISE" in visit.page.locator("#chart-time .plot").text_content()


def test_from_a_server_too(browser, path):
    handler = functools.partial(QuietHandler, directory=str(path.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        visit = Visit(browser, f"http://127.0.0.1:{server.server_port}/index.html")
        assert visit.texts("h1") == ["Explanation methods, measured"]
        visit.close()
    finally:
        server.shutdown()
        server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_fits_the_window(browser, path, tmp_path, size, colours):
    """Nothing is wider than the window; CAMEXP_SCREENSHOTS names a folder where the pictures are kept."""
    visit = Visit(browser, path.as_uri(), size, colours)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == size[0]
    boxes = visit.page.locator("article.table .scroll:visible").all()
    assert len(boxes) == 3
    for box in boxes:  # the first column stays when a table scrolls in its box
        left = "box => [...box.querySelectorAll('th[scope=row]')].map((head) => head.getBoundingClientRect().left)"
        before = box.evaluate(left)
        box.evaluate("box => { box.scrollLeft = 50; }")
        assert box.evaluate(left) == pytest.approx(before, abs=1)
    folder = Path(os.environ.get("CAMEXP_SCREENSHOTS", tmp_path))
    picture = folder / f"page_{size[0]}_{colours}.png"
    visit.page.screenshot(path=picture, full_page=True)
    with Image.open(picture) as image:
        assert image.width == size[0]
        ground = image.convert("L").getpixel((2, image.height // 2))
    assert (ground > 128) == (colours == "light")
    visit.close()


def test_narrow_window_starts_with_a_row_per_method(browser, path):
    visit = Visit(browser, path.as_uri(), NARROW)
    assert visit.page.locator("input[name=layout][value=methods]").is_checked()
    assert visit.texts(f"{TABLE} tbody th") == ["Grad-CAM", "SISE", "RISE", "uniform control"]
    visit.close()


def test_focus_is_visible(visit):
    button = visit.page.locator("th.sortable button:visible").first
    visit.page.locator("#filters button[type=reset]").focus()
    for _ in range(20):
        visit.page.keyboard.press("Tab")
        if button.evaluate("button => button === document.activeElement"):
            break
    outline = button.evaluate("button => getComputedStyle(button).outlineStyle + getComputedStyle(button).outlineWidth")
    assert outline == "solid3px"
