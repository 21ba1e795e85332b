"""The page in a real browser: what it sends, shows, stops and changes."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.support.serving import listening, served, write_run
from torchtrain.trainer import Trainer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.whole, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
IDLE = "main[aria-busy=false]"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(write_run(tmp_path_factory.mktemp("runs") / "small"), Trainer) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(server, browser):
    with listening(server) as address:
        made, wrong = browser.new_page(color_scheme="dark"), []
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
        made.goto(address)
        made.wait_for_selector("#model option", state="attached")
        yield made
        made.close()
    assert wrong == []


def ask(page, text):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{IDLE} .assistant:last-child")


def turns(page):
    return page.evaluate("talk.map((turn) => [turn.role, turn.content])")


def test_ask_regenerate_and_edit(page):
    assert page.is_visible("#empty")
    ask(page, "hello")
    first = turns(page)
    assert [role for role, _ in first] == ["user", "assistant"]
    assert first[0][1] == "hello"
    assert not page.is_visible("#empty")
    assert "tokens/s" in page.inner_text(".assistant .under")
    page.click("text=Regenerate")
    page.wait_for_selector(f"{IDLE} .assistant:last-child")
    again = turns(page)
    assert again[0] == first[0]
    assert again[1] != first[1], "another seed"
    page.click(".user >> text=Edit")
    page.fill(".user textarea", "other")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{IDLE} .assistant:last-child")
    assert [content for role, content in turns(page) if role == "user"] == ["other"]
    page.click("#fresh")
    assert turns(page) == []


def test_settings_are_sent(page):
    page.click("#settings-open")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "3")
    page.fill("#system", "Be.")
    with page.expect_request("**/chat/completions") as sent:
        ask(page, "hello")
    body = sent.value.post_data_json
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 3, "small")
    assert body["messages"] == [{"role": "system", "content": "Be."}, {"role": "user", "content": "hello"}]
    assert "cut at its most tokens" in page.inner_text(".assistant .under")


def test_stop_frees_the_row(page, server, monkeypatch):
    plain = server.engine._step
    monkeypatch.setattr(server.engine, "_step", lambda: (time.sleep(0.1), plain()))
    page.fill("#question", "hello")
    page.keyboard.press("Enter")
    until = time.monotonic() + 20
    while len(turns(page)) < 2 or len(turns(page)[1][1]) < 3:
        assert time.monotonic() < until
    page.keyboard.press("Escape")
    page.wait_for_selector(IDLE)
    while server.engine.statistics().rows:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(turns(page)[1][1]) < 16
    assert "stopped" in page.inner_text(".assistant .under")


def test_what_goes_wrong_is_shown(page):
    page.click("#settings-open")
    page.fill("#max_tokens", "90")
    page.fill("#question", "hello")
    page.keyboard.press("Enter")
    page.wait_for_selector(".error")
    assert "don't fit in the 96" in page.inner_text(".error")
    page.fill("#max_tokens", "2")
    page.click("#send")
    page.wait_for_selector(f"{IDLE} .assistant:last-child")
    assert not page.is_visible(".error")


def test_text_of_a_model_is_never_html(page):
    evil = (
        "<img src=x onerror=alert(1)>\n```html\n<script>alert(1)</script>\n```\n"
        "**<b>x</b>** `<i>` [a](javascript:alert(1))\n\n1. one\n2. two"
    )
    page.evaluate("(text) => document.querySelector('#talk').append(markdown(text, copy))", evil)
    assert page.evaluate("document.querySelectorAll('#talk img, #talk script, #talk b, #talk i, #talk a').length") == 0
    shown = page.inner_text("#talk")
    assert "<script>alert(1)</script>" in shown
    assert "<img src=x onerror=alert(1)>" in shown
    assert page.evaluate("document.querySelectorAll('#talk ol li').length") == 2


def test_dark_light_and_a_phone(page):
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(22, 24, 27)", "as the system has it"
    page.click("#theme")
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    page.reload()
    assert page.evaluate(back) == "rgb(255, 255, 255)", "kept"
    page.set_viewport_size({"width": 360, "height": 640})
    page.click("#settings-open")
    ask(page, "a word_that_is_longer_than_a_phone_is_wide_" * 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.is_visible("#send")
