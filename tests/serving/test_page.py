"""The page at `/`, in a headless Chromium, against a server of a small student with vision."""

# Shape legend: N passages, D size of the vectors.

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from picture_files import photo, written
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_server import served
from small_student import small_student

from jasper_ray import load_student
from jasper_ray.models.folder import save_student
from jasper_ray.models.student import add_vision
from jasper_ray.models.vision import VisionSettings

CHROMIUMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "jr-a-key-for-the-tests"
QUERY = "Which animals hunt at night?"
PASSAGES = (
    "Owls hear a mouse that's under the snow.",
    "<b>Bread</b> & butter cost $5 or `more`</textarea>",
    "Foxes hunt when it is dark.",
    "Trains are late in winter.",
    "A cat sees well by the light of the moon.",
)
REFUSED = "Failed to load resource"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright's own Chromium, or the machine's."""
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path).is_file()
        path = None if own else next(filter(None, map(shutil.which, CHROMIUMS)), None)
        if not own and path is None:
            pytest.skip("there is no Chromium: run `apt-get install chromium`, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with heads of 96 and 32 (the default), and a tower of random weights."""
    folder = tmp_path_factory.mktemp("page")
    architecture = {"model_type": "siglip_vision_model", "patch_size": 8, "image_size": 32, "hidden_size": 48}
    architecture |= {"intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = {"architecture": architecture, "preprocessing": {"size": 32}, "image_tokens": 4}
    blind = load_student(small_student(folder / "blind"))
    seeing = add_vision(blind.student, blind.tokenizer, VisionSettings.model_validate(tower), seed=3)
    save_student(seeing, blind.tokenizer, blind.card, folder / "seeing")
    return folder / "seeing"


@pytest.fixture(scope="module")
def server(student: Path) -> Iterator[str]:
    with served(student) as (address, _):
        yield address


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open pages. At the end of the test, none may have asked another server or failed unexpectedly."""
    asked: list[tuple[str, str]] = []
    faults: list[str] = []
    pages: list[Page] = []

    def open_(address: str, foreseen: str = "nothing", width: int = 1200) -> Page:
        expect.set_options(timeout=30_000)  # a loaded machine takes more than the usual five seconds
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.on("request", lambda request: asked.append((address, request.url)))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda told: None if told.text.startswith(foreseen) else faults.append(told.text))
        page.goto(address)
        return page

    yield open_
    for page in pages:
        page.close()
    assert [url for address, url in asked if not url.startswith((f"{address}/", "data:image/"))] == []
    assert faults == []


def rank(page: Page, passages: Sequence[str] = PASSAGES, query: str = QUERY) -> None:
    """Fill in the form, send it from the keyboard, and wait until every size is there."""
    page.get_by_label("Query", exact=True).fill(query)
    page.get_by_label("Passages, one per line").fill("\n".join(passages))
    page.keyboard.press("Control+Enter")
    settle(page)


def settle(page: Page) -> None:
    expect(page.get_by_role("button", name="Rank", exact=True)).to_be_visible()


def add_images(page: Page, label: str, *files: Path) -> None:
    """Choose files once the page allows it, and wait until the last one is there."""
    expect(page.get_by_role("button", name="Add images")).to_be_visible()
    page.get_by_label(label).set_input_files(files)
    expect(page.get_by_alt_text(files[-1].name)).to_be_visible()


def choose(page: Page, size: int) -> None:
    page.get_by_label("Any size").fill(str(size))
    page.keyboard.press("Enter")


def shown(page: Page) -> tuple[list[str], list[float]]:
    """Read the ranking from the page: texts and cosines."""
    expect(page.locator("#ranking li").first).to_be_visible()  # hidden text has no line breaks
    rows = [row.split("\n") for row in page.locator("#ranking li").all_inner_texts()]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    return [row[1] for row in rows], [float(row[2].replace("−", "-")) for row in rows]


def vectors(address: str, body: dict[str, object]) -> np.ndarray:
    """Embed with the API, `[N, D]`."""
    request = urllib.request.Request(f"{address}/v1/embeddings", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return np.array([one["embedding"] for one in json.load(answer)["data"]])


def cosines(address: str, size: int, passages: Sequence[str] = PASSAGES, query: str = QUERY) -> np.ndarray:
    """Compute the cosine of every passage with the query, from the API, `[N]`."""
    query_D = vectors(address, {"input": query, "dimensions": size, "prompt_name": "s2p_query"})[0]
    return vectors(address, {"input": list(passages), "dimensions": size, "prompt_name": ""}) @ query_D


def ranks(cosines_N: np.ndarray) -> list[int]:
    return [int(rank) for rank in 1 + np.argsort(np.argsort(-cosines_N))]


def same_ranking(page: Page, cosines_N: np.ndarray, passages: Sequence[str] = PASSAGES) -> None:
    texts, values = shown(page)
    order = np.argsort(-cosines_N)
    assert texts == [passages[place] for place in order]
    np.testing.assert_allclose(values, cosines_N[order], atol=6e-4)


def test_the_ranking_is_that_of_the_answers(server: str, open_page: Open) -> None:
    page = open_page(server)
    rank(page)
    expect(page.get_by_role("heading", name="Ranking at 32 dimensions")).to_be_visible()
    same_ranking(page, cosines(server, 32))
    facts = page.get_by_role("status").inner_text()
    assert re.search(
        r"[\d.]+ ms round trip.*[\d.]+ ms prepare, [\d.]+ ms queue, [\d.]+ ms model.*\d+ tokens", facts, re.S
    )


def test_texts_never_become_markup(server: str, open_page: Open) -> None:
    page = open_page(server)
    rank(page)
    assert page.locator("#ranking b").count() == 0
    assert PASSAGES[1] in page.locator("tbody th").all_inner_texts()


def test_one_prompt_for_both_is_one_request(server: str, open_page: Open) -> None:
    page = open_page(server)
    page.get_by_label("Query prompt").select_option("none")
    sent: list[str | None] = []
    page.on("request", lambda request: sent.append(request.post_data))
    rank(page)
    assert [json.loads(body or "")["dimensions"] for body in sent] == [32, 96]
    expect(page.get_by_role("status")).not_to_contain_text("two requests")


def test_another_size_is_shown_beside_the_heads(server: str, open_page: Open) -> None:
    page = open_page(server)
    rank(page)
    page.get_by_role("button", name="96", exact=True).click()
    expect(page.get_by_role("heading", name="Ranking at 96 dimensions")).to_be_visible()
    same_ranking(page, cosines(server, 96))
    choose(page, 7)
    expect(page.get_by_role("heading", name="Ranking at 7 dimensions")).to_be_visible()
    same_ranking(page, cosines(server, 7))


def test_the_table_marks_every_change_of_rank(server: str, open_page: Open) -> None:
    page = open_page(server)
    rank(page)
    choose(page, 7)
    expect(page.locator("thead th")).to_have_text(["Passage", "7", "32", "96"])
    settle(page)
    by_size = {size: cosines(server, size) for size in (7, 32, 96)}
    base = ranks(by_size[7])
    for row, passage in enumerate(np.argsort(-by_size[7])):
        for column, (size, cosines_N) in enumerate(by_size.items()):
            now = ranks(cosines_N)[passage]
            moved = base[passage] - now
            mark = f"{'▲' if moved > 0 else '▼'}{abs(moved)}" if moved else ""
            cell = page.locator("tbody tr").nth(row).locator("td").nth(column)
            assert (cell.text_content() or "").startswith(f"{mark}{now}"), (size, passage)
            value = cell.locator("small").inner_text().replace("−", "-")
            assert float(value) == pytest.approx(cosines_N[passage], abs=6e-4)
    assert page.locator(".move").count() > 0


def test_a_wrong_size_is_told_in_a_sentence_and_what_was_there_stays(server: str, open_page: Open) -> None:
    page = open_page(server, foreseen=REFUSED)
    rank(page)
    choose(page, 5000)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("5000 is no size of this model; expected 32, 96, or one below the largest.")
    assert len(shown(page)[0]) == len(PASSAGES)
    choose(page, 32)
    expect(alert).to_be_hidden()


def test_what_is_missing_and_who_is_gone_are_told(server: str, open_page: Open) -> None:
    page = open_page(server, foreseen=REFUSED)
    rank(page, passages=())
    expect(page.get_by_role("alert")).to_have_text("There are no passages yet; write some, one per line.")
    page.route("**/v1/embeddings", lambda route: route.abort())
    rank(page)
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached; is it still up?")


def test_a_server_with_keys_asks_for_one_and_the_page_keeps_it_nowhere(student: Path, open_page: Open) -> None:
    with served(student, open=False, keys={"tests": hashlib.sha256(KEY.encode()).hexdigest()}) as (address, _):
        page = open_page(address, foreseen=REFUSED)
        expect(page.get_by_role("alert")).to_contain_text("Missing API key")
        page.get_by_label("API key").fill("jr-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Unknown API key")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_label("API key")).to_be_hidden()
        rank(page)
        assert len(shown(page)[0]) == len(PASSAGES)
        assert KEY not in page.locator("#curl").inner_text()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_images_are_queries_and_passages(server: str, open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "it's a flower.png").write_bytes(written(photo(), "PNG"))
    (tmp_path / "small.jpg").write_bytes(written(photo(40, 40), "JPEG"))
    page = open_page(server)
    add_images(page, "Images as passages", tmp_path / "it's a flower.png", tmp_path / "small.jpg")
    rank(page)
    inputs = [*PASSAGES, data_uri(tmp_path / "it's a flower.png"), data_uri(tmp_path / "small.jpg")]
    same_ranking(page, cosines(server, 32, inputs), [*PASSAGES, "it's a flower.png", "small.jpg"])
    page.get_by_role("button", name="Remove small.jpg").click()
    add_images(page, "Image as the query", tmp_path / "small.jpg")
    expect(page.get_by_label("Query", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Rank", exact=True).click()
    settle(page)
    same_ranking(page, cosines(server, 32, inputs[:-1], inputs[-1]), [*PASSAGES, "it's a flower.png"])


def data_uri(file: Path) -> str:
    kind = "jpeg" if file.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def test_the_command_for_a_shell_sends_the_same(server: str, open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "it's a flower.png").write_bytes(written(photo(), "PNG"))
    page = open_page(server)
    rank(page)
    assert sent_by(page.locator("#curl").inner_text(), tmp_path) == [[QUERY], list(PASSAGES)]
    add_images(page, "Images as passages", tmp_path / "it's a flower.png")
    rank(page)
    inputs = [*PASSAGES, data_uri(tmp_path / "it's a flower.png")]
    assert sent_by(page.locator("#curl").inner_text(), tmp_path) == [[QUERY], inputs]


def sent_by(command: str, folder: Path) -> list[list[str]]:
    """Return the inputs that a curl command would send, by a curl that prints its data."""
    curl = 'curl() { if [ "${@: -1}" = @- ]; then cat; else printf "%s\\n" "${@: -1}"; fi; }\n'
    done = subprocess.run(["bash", "-c", curl + command], cwd=folder, capture_output=True, text=True, check=True)
    return [json.loads(line)["input"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(server: str, open_page: Open, width: int) -> None:
    page = open_page(server, width=width)
    rank(page, passages=[*PASSAGES, "w" * 300])
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_model_that_only_reads_asks_for_no_images(open_page: Open, tmp_path: Path) -> None:
    with served(small_student(tmp_path / "student")) as (address, _):
        page = open_page(address)
        expect(page.get_by_role("button", name="Rank", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Add images")).to_be_hidden()
