"""Words that OpenAI's two APIs have in common."""

from __future__ import annotations

import time
import uuid
from typing import Any

from rmat.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from rmat.engine.request import Stream
from rmat.serving.service import Service

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not."""

_FINISH_REASONS = {
    "length": "length",
    "stop": "stop",
    "end": "stop",
    "timeout": "length",
    "stopped": "length",
}


class Wording:
    """What the answers to one request have in common.

    Args:
        service: whose model writes.
        kind: `text_completion`, `chat.completion`.
        chunk_kind: what a chunk of it is called.
        prefix: how ids begin.
    """

    def __init__(self, service: Service, *, kind: str, chunk_kind: str, prefix: str) -> None:
        self.tokenizer = service.tokenizer
        self._kinds = {False: kind, True: chunk_kind}
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """A whole answer, or a chunk of one, around its choices."""
        return {**self._head, "object": self._kinds[chunk], "choices": choices}


def finish(stream: Stream) -> dict[str, str]:
    """Why a text is over: in OpenAI's words, and in ours."""
    assert stream.finish is not None
    return {"finish_reason": _FINISH_REASONS[stream.finish], "finish_detail": stream.finish}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; `bytes:\\xe2\\x82` where it is no whole character, `<|turn_end|>` and so on for special ones."""
    raw = tokenizer.decode_bytes([token])
    if not raw:
        names = {tokenizer.special_id(name[2:-2]): name for name in SPECIAL_TOKENS}
        return names.get(token, "")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """A log-probability that JSON can express."""
    return max(logprob, LEAST_LOGPROB)
