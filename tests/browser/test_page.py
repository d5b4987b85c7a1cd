"""The annotation page in a browser, with the embedded model and the sample photographs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.registry import create_model
from hqsam.rle import decode_rle, encode_rle
from tests.browser.conftest import RUNTIME, Served
from tests.browser.screen import Screen
from tests.helpers import fill_parameters

pytestmark = pytest.mark.slow

CUP = (77, 19, 477, 392)


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture()
def screen(chromium: Any, served: Served) -> Iterator[Screen]:
    yield from tab(chromium, f"{served.url}?decoder=server")


def tab(browser: Any, url: str, **look: Any) -> Iterator[Screen]:
    screen = Screen(browser, url, **look)
    yield screen
    screen.page.close()
    assert not screen.errors


def saved(served: Served, name: str) -> list[dict[str, Any]]:
    """Objects of an image in its file on disk."""
    for path in served.out.glob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        if content.get("image") == name:
            objects: list[dict[str, Any]] = content["objects"]
            return objects
    return []


def union(objects: list[dict[str, Any]]) -> NDArray[np.bool_]:
    masks = [decode_rle(item["rle"]) for item in objects]
    return np.logical_or.reduce(masks)


def annotate(screen: Screen) -> None:
    """A box, clicks on both sides, a stroke, and one stroke too many."""
    screen.drag((CUP[0], CUP[1]), (CUP[2], CUP[3]))
    screen.settle()
    screen.click(290, 60)
    screen.click(20, 20, "right")
    screen.settle()
    assert screen.objects[0]["prompts"] == {"points": [[290, 60, 1], [20, 20, 0]], "box": list(CUP)}
    screen.press("b")
    screen.drag((500, 300), (560, 340), (560, 380))
    screen.settle()
    before = screen.objects
    assert decode_rle(before[0]["rle"])[340, 560]
    screen.press("x")
    screen.drag((200, 200), (300, 250))
    screen.settle()
    assert not decode_rle(screen.objects[0]["rle"])[225, 250]
    screen.press("Control+z")
    screen.settle()
    assert screen.objects == before


def test_prompts_brush_undo_save_and_reload(screen: Screen, served: Served) -> None:
    screen.open("coffee.jpg")
    annotate(screen)
    shown = screen.shown_mask()
    assert shown.sum() > 10000
    assert np.array_equal(union(saved(served, "coffee.jpg")), shown)
    screen.page.reload()
    screen.until("window.hqsam?.annotator.document?.now.objects.length === 1 && hqsam.layers.picture")
    assert screen.js("hqsam.annotator.document.image.name") == "coffee.jpg"
    assert np.array_equal(screen.shown_mask(), shown)


def test_hover_shows_a_mask_and_a_click_keeps_it(screen: Screen) -> None:
    screen.open("rocket.jpg")
    screen.page.mouse.move(*screen.place(322, 300))
    screen.until("hqsam.layers.overlay.preview")
    preview = screen.js("hqsam.annotator.preview.answer.masks[hqsam.annotator.preview.chosen].rle")
    assert not screen.objects
    screen.click(322, 300)
    screen.settle()
    assert [item["rle"] for item in screen.objects] == [preview]
    screen.press("2")
    screen.settle()
    screen.press("t")
    screen.settle()
    assert len(screen.objects) == 1
    for _ in range(3):
        screen.press("Control+z")
    screen.settle()
    assert not screen.objects


def test_labels_visibility_and_deletion(screen: Screen, served: Served) -> None:
    screen.open("camera.png")
    screen.drag((230, 217), (406, 511))
    screen.settle()
    label = screen.page.locator("#objects input")
    label.fill("<b>tripod</b> & 'co'")
    label.press("Enter")
    screen.settle()
    assert saved(served, "camera.png")[0]["label"] == "<b>tripod</b> & 'co'"
    assert screen.page.locator("#objects b").count() == 0
    screen.page.click("#objects .eye")
    assert not screen.shown_mask().any()
    screen.page.click("#objects .eye")
    assert screen.shown_mask().any()
    screen.page.click("#objects .bin")
    screen.settle()
    assert saved(served, "camera.png") == []
    screen.press("Control+z")
    screen.settle()
    assert len(saved(served, "camera.png")) == 1
    screen.page.click("#done")
    screen.settle()
    assert screen.page.get_attribute("#images .image-row:has-text('camera.png')", "data-state") == "done"


def test_two_tabs_never_overwrite_each_other(chromium: Any, served: Served, screen: Screen) -> None:
    others = tab(chromium, f"{served.url}?decoder=server")
    other = next(others)
    for one in (screen, other):
        one.open("astronaut.jpg")
    screen.drag((18, 17), (358, 511))
    screen.settle()
    theirs = saved(served, "astronaut.jpg")
    other.drag((353, 0), (472, 291))
    other.until("document.getElementById('conflict').open")
    assert saved(served, "astronaut.jpg") == theirs
    assert other.page.inner_text("#saved").startswith("Not saved")
    other.page.click("#keep-both")
    other.settle()
    assert [item["id"] for item in saved(served, "astronaut.jpg")] == [theirs[0]["id"], other.objects[1]["id"]]
    screen.press("b")
    screen.drag((100, 100), (120, 120))
    screen.until("document.getElementById('conflict').open")
    screen.page.click("#take-theirs")
    screen.settle()
    assert [item["id"] for item in screen.objects] == [item["id"] for item in other.objects]
    next(others, None)


def test_offline_work_is_saved_later(screen: Screen, served: Served) -> None:
    screen.open("rocket.jpg")
    screen.press("b")
    screen.page.context.set_offline(True)
    screen.drag((100, 100), (150, 150))
    screen.until("document.getElementById('saved').dataset.state === 'unsaved'")
    assert saved(served, "rocket.jpg") == []
    screen.page.context.set_offline(False)
    screen.settle()
    assert len(saved(served, "rocket.jpg")) == 1
    screen.press("Control+z")
    screen.settle()


def proposed(served: Served, name: str) -> None:
    """Put three proposals into the file of an image, as somebody else would."""
    picture = next(picture for picture in served.service.pictures.values() if picture.relative == name)
    current = served.service.annotations(picture)
    objects = []
    for at in range(3):
        mask = np.zeros((picture.height, picture.width), bool)
        mask[50 + 100 * at : 120 + 100 * at, 60:200] = True
        item = {"id": f"p{at}", "label": "", "rle": encode_rle(mask), "status": "proposed", "source": "proposal"}
        objects.append({**item, "score": 0.9, "prompts": None, "seconds": None})
    from hqsam.serve.messages import SaveRequest

    request = SaveRequest.model_validate({"revision": current["revision"], "state": "started", "objects": objects})
    served.service.store.save(picture, request.revision, request.state, request.objects)


def test_proposals_are_accepted_edited_and_deleted(screen: Screen, served: Served) -> None:
    proposed(served, "camera.png")
    screen.open("coffee.jpg")
    screen.open("camera.png")
    assert screen.page.inner_text("#proposals-count") == "3"
    screen.press("ArrowDown")
    screen.press("a")
    screen.press("r")
    screen.press("b")
    screen.drag((100, 300), (250, 300))
    screen.settle()
    found = {item["id"]: (item["status"], item["source"]) for item in saved(served, "camera.png")}
    assert found == {"p0": ("accepted", "proposal"), "p2": ("accepted", "brush")}
    for _ in range(3):
        screen.press("Control+z")
    screen.press("Shift+A")
    screen.settle()
    assert [item["status"] for item in saved(served, "camera.png")] == ["accepted"] * 3


def test_zoom_pan_keys_and_help(screen: Screen) -> None:
    screen.press("z")
    assert screen.page.inner_text("#zoom") == "100 %"
    x, y = screen.place(200, 150)
    screen.page.mouse.move(x, y)
    screen.page.mouse.wheel(0, -400)
    assert screen.js("hqsam.view.scale") > 1.5
    assert screen.place(200, 150) == pytest.approx((x, y), abs=0.6)  # about the cursor
    screen.page.keyboard.down(" ")
    screen.drag((200, 150), (210, 150))
    screen.page.keyboard.up(" ")
    assert screen.place(200, 150)[0] > x + 5
    assert not screen.js("hqsam.annotator.waiting")
    screen.press("f")
    screen.press("?")
    assert screen.page.locator("#help").is_visible()
    screen.press("Escape")
    assert not screen.page.locator("#help").is_visible()
    name = screen.js("hqsam.annotator.document.image.name")
    screen.press("ArrowRight")
    screen.until(f"hqsam.annotator.document.image.name !== '{name}'")


def test_every_control_has_a_name(screen: Screen) -> None:
    nameless = """[...document.querySelectorAll('button, input, dialog, canvas ~ *[role]')]
      .filter((item) => !(item.textContent.trim() || item.ariaLabel || item.labels?.length
        || item.getAttribute('aria-labelledby'))).map((item) => item.id || item.className)"""
    assert screen.js(nameless) == []
    source = screen.js("fetch('/').then((answer) => answer.text())")
    assert not re.search(r"\s(style|on\w+)=", source)  # the policy forbids them


def test_theme_follows_the_system_until_it_is_chosen(chromium: Any, served: Served) -> None:
    for screen in tab(chromium, served.url, color_scheme="dark"):
        assert screen.js("document.documentElement.dataset.theme") == "dark"
        screen.page.click("#theme")
        screen.page.reload()
        screen.until("window.hqsam?.annotator.document")
        assert screen.js("document.documentElement.dataset.theme") == "light"


def test_the_server_answers_where_the_browser_cannot(chromium: Any, served: Served) -> None:
    def promise_too_much(route: Any) -> None:
        state = route.fetch().json()
        state["browser_decoder"] = {**state["browser_decoder"], "available": True, "reason": None}
        route.fulfill(json=state)

    screen = Screen(chromium, served.url, lambda page: page.route("**/api/state", promise_too_much))
    screen.open("rocket.jpg")
    screen.until("hqsam.predictor.reason")
    screen.click(322, 300)
    screen.settle()
    assert len(screen.objects) == 1
    assert screen.page.inner_text("#answered").startswith("server")
    screen.press("Control+z")
    screen.settle()
    screen.page.close()


COMPARE = """(async ([points, box, fusion, multimask]) => {
  const { image } = hqsam.annotator.document;
  const prompt = { points, box, previous: null, fusion, multimask };
  const here = await hqsam.predictor.predict(image, prompt);
  const { api } = await import('/page/api.js');
  const there = await api.predict(image.id, prompt);
  return [here.source, here.masks.map(({ rle, score }) => ({ rle, score })), there.masks];
})(value)"""


CORRECT = """(async ([box, point, fusion]) => {
  const { image } = hqsam.annotator.document;
  const { api } = await import('/page/api.js');
  const first = { points: [], box, previous: null, fusion, multimask: false };
  const here = await hqsam.predictor.predict(image, first);
  const there = await api.predict(image.id, first);
  const second = (answer) => ({ ...first, points: [point], previous: { answer, candidate: 0 } });
  const mine = await hqsam.predictor.predict(image, second(here));
  const its = await api.predict(image.id, second(there.answer));
  return [mine.source, here.masks[0].rle, mine.masks[0].rle, its.masks[0].rle];
})(value)"""


@pytest.fixture(scope="module")
def with_runtime(serve: Callable[..., Served]) -> Served:
    if RUNTIME is None:
        pytest.skip("needs HQSAM_ORT_WEB, a folder that onnxruntime-web was installed into")
    pytest.importorskip("onnxscript")
    return serve(Path(RUNTIME))


def wait_for_decoder(screen: Screen) -> None:
    code = "(async () => (await (await fetch('/api/state')).json()).browser_decoder.available)()"
    for _ in range(600):
        if screen.js(code):
            break
        screen.page.wait_for_timeout(500)
    screen.page.reload()
    screen.until("window.hqsam?.annotator.document")


def test_decoder_in_the_browser_gives_the_servers_masks(chromium: Any, with_runtime: Served) -> None:
    for screen in tab(chromium, f"{with_runtime.url}?decoder=browser"):
        wait_for_decoder(screen)
        screen.open("coffee.jpg")
        annotate(screen)
        assert "browser" in screen.page.inner_text("#answered")
        assert np.array_equal(union(saved(with_runtime, "coffee.jpg")), screen.shown_mask())
        cup = list(CUP)
        prompts = (([[290, 60, 1]], None), ([], cup), ([[215, 275, 1], [120, 240, 0]], None), ([[357, 119, 0]], cup))
        for points, box in prompts:
            for fusion in ("sum", "hq", "sam"):
                for multimask in (False, True):
                    source, here, there = screen.js(COMPARE, [points, box, fusion, multimask])
                    # plain SAM has no HQ token beside its own, which the browser's decoder always has
                    assert (source, len(here)) == ("server" if fusion == "sam" else "browser", len(there))
                    for mine, its in zip(here, there, strict=True):
                        one, two = decode_rle(mine["rle"]), decode_rle(its["rle"])
                        # embeddings travel in half precision: a few pixels of the edge
                        assert (one != two).sum() <= 2e-3 * one.size, (fusion, multimask)
                        assert mine["score"] == pytest.approx(its["score"], abs=5e-3)
        for x, y, label in ((357, 119, 0), (215, 275, 0), (120, 240, 0), (300, 380, 1), (60, 200, 1)):
            for fusion in ("sum", "hq"):  # a click that corrects the answer before is always heeded
                source, *runs = screen.js(CORRECT, [cup, [x, y, label], fusion])
                before, one, two = map(decode_rle, runs)
                assert source == "browser" and (one != two).sum() <= 2e-3 * one.size, (x, y, fusion)
                assert one[y, x] == two[y, x] == label or before[y, x] == label, (x, y, fusion)


def test_webgpu_gives_the_servers_masks(chromium: Any, serve: Callable[..., Served]) -> None:
    """With a small model: here the graphics card is imitated by the processor, some hundred times slower."""
    if RUNTIME is None:
        pytest.skip("needs HQSAM_ORT_WEB, a folder that onnxruntime-web was installed into")
    pytest.importorskip("onnxscript")
    model = create_model("hq_test_tiny", device="cpu")
    fill_parameters(model, seed=1)
    model.head_state = "trained"
    small = serve(Path(RUNTIME), model)
    for screen in tab(chromium, f"{small.url}?decoder=webgpu"):
        if not screen.js("(async () => Boolean(await navigator.gpu?.requestAdapter()))()"):
            pytest.skip("needs a Chromium with WebGPU")
        wait_for_decoder(screen)
        screen.open("coffee.jpg")
        screen.click(290, 60)
        screen.settle()
        assert screen.page.inner_text("#answered").startswith("browser (WebGPU)")
        for points, box, fusion in (([[290, 60, 1], [20, 20, 0]], None, "sum"), ([], list(CUP), "hq")):
            source, here, there = screen.js(COMPARE, [points, box, fusion, False])
            assert source == "browser"
            one, two = decode_rle(here[0]["rle"]), decode_rle(there[0]["rle"])
            assert 0 < two.sum() < two.size and (one != two).sum() <= 2e-3 * one.size
            assert here[0]["score"] == pytest.approx(there[0]["score"], abs=5e-3)
