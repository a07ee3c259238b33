"""The page at `/`: one file that needs nothing from elsewhere, and is held to that."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

FILE = Path(__file__).parent / "static" / "index.html"

_SCRIPT = re.compile(rb"<script[^>]*>(.*?)</script>", re.DOTALL)


def page_routes(file: Path = FILE) -> APIRouter:
    """The route of the page, which is read once."""
    router = APIRouter()
    page = file.read_bytes() if file.is_file() else None
    headers = {} if page is None else _headers(page)

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        if page is None:
            return PlainTextResponse("this installation has no page; the API is under /v1\n", 404)
        return HTMLResponse(page, headers=headers)

    return router


def _headers(page: bytes) -> dict[str, str]:
    """What the page may do: run the scripts in it and no others, and talk to this server only."""
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page)]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "cache-control": "no-cache",
    }
