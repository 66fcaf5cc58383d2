"""The chat page in a real browser: streams, stops, keeps one conversation a tab."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed (serve)")
pytest.importorskip("starlette", reason="starlette is not installed (serve)")

from serving import Script, serving, tiny

_, TOKENIZER = tiny()


def test_a_browser_asks_stops_and_keeps_a_conversation_a_tab() -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev)")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    script, complaints, outside = Script(TOKENIZER), [], []
    with (
        serving(script, TOKENIZER, key="s3cret", everywhere=True) as listener,
        api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_context().new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        page.on("request", lambda r: r.url.startswith(listener.url) or outside.append(r.url))
        page.goto(listener.page_url)
        api.expect(page.locator("#model")).to_have_text("a-run")
        assert "s3cret" not in page.url  # nobody reads it over a shoulder
        page.fill("#text", "Hi")
        page.press("#text", "Enter")
        job = script.next()
        script.say(job, "<img src=x onerror=alert(1)> & more")
        answer = page.locator(".assistant").first
        api.expect(answer).to_contain_text("<img src=x onerror=alert(1)> & more")
        job.on_token(None, "stop")
        api.expect(page.locator("#send")).to_have_text("Send")
        page.fill("#text", "Go on")
        page.press("#text", "Enter")
        second = script.next()
        assert len(second.prompt) > len(job.prompt) + 20  # the whole conversation is sent
        script.say(second, "and")
        api.expect(page.locator(".assistant").last).to_contain_text("and")
        page.keyboard.press("Escape")
        api.expect(page.locator(".assistant").last).to_contain_text("stopped")
        assert second.cancelled.wait(30)
        page.reload()
        api.expect(page.locator(".turn")).to_have_count(4)
        other = page.context.new_page()
        other.goto(listener.page_url)
        api.expect(other.locator("#empty")).to_be_visible()
        page.click("#new")
        api.expect(page.locator("#empty")).to_be_visible()
        browser.close()
    assert not complaints
    assert not outside
