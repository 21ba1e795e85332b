"""Texts as pages of a web site: what was written, between what stands on every page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from coretrain.corpus.demo.texts import Text

MENU = ("Home", "Library", "Language", "Tutorials", "Downloads", "Community", "Contact")
FOOT = ("Terms of service", "Imprint", "Sitemap", "Press", "Jobs")
NOTICE = "This site uses cookies to remember your settings. Accept Decline"


def page(
    text: Text, seen: Sequence[str] = (), charset: str = "utf-8", meta: str = "utf-8", language: str = "en"
) -> bytes:
    """A page in the bytes of `charset`; it says `meta` of itself. `seen` are titles that it links to."""
    said = f'<meta charset="{meta}">' if meta else ""
    items = "".join(f'<li><a href="/{name.lower()}/">{name}</a></li>' for name in MENU)
    aside = "".join(f'<li><a href="/{one}">{html.escape(one)}</a></li>' for one in seen)
    foot = " | ".join(f'<a href="/{name.lower().replace(" ", "-")}">{name}</a>' for name in FOOT)
    body = "\n".join(map(_block, text.paragraphs))
    return f"""<!DOCTYPE html>
<html lang="{language}"><head>{said}<title>{html.escape(text.title)}</title>
<style>body {{ margin: 0 auto; }} .menu li {{ display: inline; }}</style>
<script>window.settings = {{"theme": "light", "tracking": false}};</script></head>
<body>
<div class="cookie-banner" role="dialog">{NOTICE}</div>
<header><nav class="menu"><ul>{items}</ul></nav></header>
<main><article><h1>{html.escape(text.title)}</h1>
{body}
</article></main>
<aside class="sidebar"><h2>Read next</h2><ul>{aside}</ul></aside>
<footer class="footer">{foot} | All rights reserved</footer>
</body></html>
""".encode(charset, "xmlcharrefreplace")


def flat(text: Text, seen: Sequence[str] = ()) -> str:
    """The page's whole text as a WET file has it: the menu and the foot too."""
    lines = [text.title, NOTICE, *MENU, text.title, *text.paragraphs, "Read next", *seen, " | ".join(FOOT)]
    return "\n".join(lines) + "\n"


def _block(paragraph: str) -> str:
    lines = paragraph.split("\n")
    code = sum(line.startswith("    ") for line in lines) > len(lines) / 2 or paragraph.lstrip().startswith(">>>")
    escaped = html.escape(paragraph, quote=False)
    return f"<pre>{escaped}</pre>" if code else f"<p>{escaped}</p>"
