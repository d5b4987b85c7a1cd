"""The page as a person sees and uses it: positions in pixels of the picture, colours of the canvas."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATIENCE_S = 120


class Screen:
    """A tab with the page.

    Args:
        browser: of playwright.
        url: of the page.
        prepare: called with playwright's page before the address is opened.
        look: options of a new page, for instance `color_scheme`.
    """

    def __init__(self, browser: Any, url: str, prepare: Callable[[Any], None] | None = None, **look: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800}, **look)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self._console(line))
        if prepare is not None:
            prepare(self.page)
        self.page.goto(url)
        self.until("window.hqsam?.annotator.document && hqsam.layers.picture")

    def _console(self, line: Any) -> None:
        if line.type == "error" and "409" not in line.text and "ERR_" not in line.text:
            self.errors.append(f"{line.text} {line.location}")

    def js(self, expression: str, argument: Any = None) -> Any:
        return self.page.evaluate(f"(value) => {expression}", argument)

    def until(self, expression: str) -> None:
        """Wait until it holds. The page's policy forbids `eval`, which playwright's own waiting needs."""
        end = time.monotonic() + PATIENCE_S
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"waited in vain for {expression}: {self.page.inner_text('footer')}"
            self.page.wait_for_timeout(15)

    def settle(self) -> None:
        """Wait until every prompt is answered, everything is saved and drawn."""
        self.until("hqsam.annotator.waiting === 0 && hqsam.annotator.document.isSaved")
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def open(self, name: str) -> None:
        self.page.click(f"#images .image-row:has-text('{name}')")
        self.until(f"hqsam.annotator.document.image.name === '{name}' && !hqsam.stage.matches('.loading')")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where the middle of a pixel of the picture is on the screen."""
        code = """(() => { const { left, top } = hqsam.stage.getBoundingClientRect(); const { view } = hqsam;
          return [left + view.x + (value[0] + 0.5) * view.scale, top + view.y + (value[1] + 0.5) * view.scale]; })()"""
        found = self.js(code, [x, y])
        return found[0], found[1]

    def click(self, x: float, y: float, button: Any = "left") -> None:
        self.page.mouse.click(*self.place(x, y), button=button)

    def drag(self, *places: tuple[float, float], button: Any = "left") -> None:
        mouse = self.page.mouse
        mouse.move(*self.place(*places[0]))
        mouse.down(button=button)
        for place in places[1:]:
            mouse.move(*self.place(*place), steps=4)
        mouse.up(button=button)

    def press(self, keys: str) -> None:
        self.page.keyboard.press(keys)

    @property
    def objects(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.js("hqsam.annotator.document.now.objects")
        return found

    def shown_mask(self) -> NDArray[np.bool_]:
        """(H, W): which pixels of the picture are coloured on the screen, at 100 %, read from the canvas."""
        self.press("z")
        self.js("hqsam.annotator.document.look({ selected: null })")  # without the corners around the selected object
        self.js("(hqsam.view.x = 30, hqsam.view.y = 30, hqsam.layers.draw())")
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        code = """(() => { const { width, height } = hqsam.view;
          const canvas = hqsam.stage.querySelector('canvas.objects');
          const { data } = canvas.getContext('2d').getImageData(30, 30, width, height);
          return Array.from({ length: width * height }, (_, at) => (data[4 * at + 3] ? '1' : '0')).join(''); })()"""
        bits = np.frombuffer(self.js(code).encode(), dtype=np.uint8) == ord("1")
        self.press("f")
        shape: list[int] = self.js("[hqsam.view.height, hqsam.view.width]")
        return bits.reshape(shape)
