"""A page as a test reads it: whether its HTML is whole, what it links to, its text; and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

BROWSER = shutil.which("chromium")

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NESTED_ELSEWHERE = {"p": {"div", "ul", "table", "section", "p", "details", "dl", "figure", "pre", "h2", "h3"}}
"""A browser closes the first where one of the others begins."""
DRAWN = {"line", "circle", "path", "rect"}
"""Of SVG: they close themselves."""


class Page(HTMLParser):
    """Walks through a page; `faults` are what a browser would have to guess at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> isn't closed" for tag, _ in self._open]
        self.faults += [f"id {name} comes twice" for name in {i for i in self.ids if self.ids.count(i) > 1}]
        self.faults += [f"no place #{to[1:]}" for to in self.links if to.startswith("#") and to[1:] not in self.ids]

    def handle_starttag(self, tag, attrs):
        above = [name for name, _ in self._open]
        if "p" in above and tag in NESTED_ELSEWHERE["p"] and "svg" not in above:
            self.faults.append(f"<{tag}> inside of <p>")
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[name] for name in ("href", "src", "action", "data") if given.get(name)]
        if tag not in VOID:
            self._open.append((tag, given))

    def handle_startendtag(self, tag, attrs):
        if tag not in DRAWN | VOID:
            self.faults.append(f"<{tag}/> closes itself")

    def handle_endtag(self, tag):
        if not self._open or self._open[-1][0] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1][0] if self._open else 'nothing'}")
        if any(name == tag for name, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data):
        tag, given = self._open[-1] if self._open else ("", {})
        if tag == "script":
            self.scripts[given.get("id") or ""] = data
        elif tag != "style":
            self.text += data


def walked(text: str) -> Page:
    """The page, which has to be whole and to ask nothing of a network."""
    page = Page(text)
    assert page.faults == []
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not re.search(r"\w+://|url\(|@import", text), "the page needs no network"
    page.text = " ".join(page.text.split())
    return page


def in_browser(text: str, folder: Path, width: int, script: str = "") -> dict:
    """What `script` puts into `seen` on the page, in a window of `width` pixels.

    `window` and `wide` are among it: a page that is wider than its window scrolls sideways.
    """
    told = 'parent.postMessage(JSON.stringify(seen), "*")'
    program = f"""<script>const seen = {{}};
      addEventListener("error", (event) => {{ seen.error = event.message; {told}; }});
      {script}
      setTimeout(() => {{ seen.wide = document.documentElement.scrollWidth; seen.window = innerWidth; {told}; }}, 4000);
      </script>"""
    (folder / "page.html").write_text(text.replace("</body>", f"{program}</body>"))
    listen = "<title>-</title><script>onmessage = (event) => { document.title = event.data; };</script>"
    (folder / "frame.html").write_text(f'{listen}<iframe width={width} height=900 src="page.html"></iframe>')
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width + 40},1000", "--virtual-time-budget=9000", "--dump-dom", str(folder / "frame.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0]))
    assert "error" not in seen, seen["error"]
    return seen
