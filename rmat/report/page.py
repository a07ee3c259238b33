"""The page: one HTML file with its data, style and script inside, which loads nothing and runs nothing
else."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from rmat.report.series import packed

SCRIPTS = ("charts.js", "reader.js", "page.js")


def page(data: dict[str, Any]) -> str:
    """The HTML of a report's data. Texts of users stay data: the page puts them in as text, never as markup,
    and its policy lets only its own script run."""
    css = _asset("page.css")
    js = "\n".join(_asset(name) for name in SCRIPTS)
    sources = f"script-src '{_digest(js)}'; style-src '{_digest(css)}'"
    policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
    html = _asset("page.html")
    # The data comes last: no marker in a text is ever replaced.
    for name, value in (("policy", policy), ("css", css), ("js", js), ("data", _embedded(packed(data)))):
        before, marker, after = html.partition("{{" + name + "}}")
        assert marker, f"page.html has no place for {name}"
        html = before + value + after
    return html


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element that holds it, nor begin a comment or an element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _asset(name: str) -> str:
    return resources.files("rmat.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The hash by which a content security policy knows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
