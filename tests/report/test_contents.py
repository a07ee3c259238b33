import base64
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from rmat.data.tokenizer import byte_tokenizer
from rmat.evaluation.perplexity import perplexity
from rmat.model import LanguageModel, ModelConfig
from rmat.report.contents import FORMAT, texts, training_contents
from rmat.report.page import page
from rmat.report.series import Series, packed, plain
from tests.makers.models import CASES, make_model
from tests.makers.reports import BYTES, document, told_of


def unpack(told: dict[str, Any]) -> np.ndarray:
    """What the page's script makes of a packed series."""
    raw = np.frombuffer(base64.b64decode(told["d"]), dtype=f"<{told['t']}")
    values = raw.astype(float) * told["s"]
    values[raw == np.iinfo(told["t"]).max] = np.nan
    return values.reshape(told["n"])


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        (Series(np.array([0.0, 0.5, 1.0, math.nan]), 0.004), "u1"),
        (Series(np.array([-1.35, 0.37, math.nan]), 0.01), "i2"),
        (Series(np.array([[3, -1], [254, 0]]), index=True), "u1"),
        (Series(np.array([255])), "u2"),
        (Series(np.array([70000, -2])), "i4"),
        (Series(np.zeros(0)), "u1"),
    ],
)
def test_packed_numbers_are_the_plain_ones(series: Series, kind: str) -> None:
    told = series.packed()
    listed = np.array(series.plain(), dtype=float)
    assert told["t"] == kind
    np.testing.assert_allclose(unpack(told), listed, atol=1e-9)
    missing = series.values < 0 if series.index else np.isnan(series.values.astype(float))
    np.testing.assert_array_equal(np.isnan(listed), missing)
    np.testing.assert_allclose(
        listed[~missing], series.values[~missing], atol=0.51 * series.step if series.step != 1 else 0
    )


def test_characters_spread_over_tokens_belong_to_the_last() -> None:
    ids = BYTES.encode("aé→b")
    assert texts(BYTES, ids) == ["a", "", "é", "", "", "→", "b"]
    assert texts(BYTES, [0xFF, 0x41]) == ["\ufffd", "A"]


def test_totals_are_those_of_the_evaluation() -> None:
    model = make_model("recommended", dtype=torch.float32, vocab_size=BYTES.vocab_size)
    text = "One text to be read, of which every byte is scored once. " * 8
    told = told_of(model, [text])

    class Store:
        def __len__(self) -> int:
            return 1

        def view(self, _: int) -> np.ndarray:
            return document(text)

        def document_bytes(self, _: int) -> int:
            return len(text)

    for key, mode in (("bits", "on"), ("bits_zeroed", "zeroed")):
        wanted = perplexity(model, BYTES, Store(), memory=mode)
        assert told["total"][key] == pytest.approx(wanted.bits_per_byte, abs=1e-4)
    rows = told["positions"]
    assert [(row["from"], row["to"]) for row in rows] == [(0, 256), (256, 512)]
    assert sum(row["units"] for row in rows) == len(text) == told["total"]["units"]
    whole = sum(row["bits"] * row["units"] for row in rows) / len(text)
    assert whole == pytest.approx(told["total"]["bits"], abs=1e-4)


def test_plain_data_is_json() -> None:
    model = make_model("recommended", dtype=torch.float32, vocab_size=BYTES.vocab_size)
    told = plain(told_of(model, ["some words to be read", "and others"]))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["format"] == FORMAT and "".join(told["text"]["tokens"]) == "some words to be readand others"
    assert told["text"]["specials"] == {"0": "document", "22": "document"}
    memory = told["layers"][0]["memory"]
    assert len(memory["reads"]["entry"]) == told["total"]["tokens"] and len(memory["reads"]["entry"][0]) == 5
    assert memory["written"] == len(memory["entries"]["source"]) >= memory["readable"] >= memory["dead"]
    assert told["text"]["bits"][21] is None, "nothing follows the last token of a document"


def test_what_is_told_of_a_memory_of_local_keys() -> None:
    case = {**CASES["admitted_of_heads"], "n_sinks": 2}
    model = make_model(case, dtype=torch.float32, vocab_size=BYTES.vocab_size)
    told = plain(told_of(model, ["some words to be read again and again", "and others"]))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["format_version"] == 1 and told["model"]["write_lag"] == model.config.write_lag == 6
    memory = told["layers"][0]["memory"]
    heads, sources = memory["entries"]["key_head"], memory["entries"]["source"]
    sinks = [e for e, source in enumerate(sources) if source in (0, 1)]
    assert len(sinks) == 2 and all(heads[e] is None and memory["entries"]["gate"][e] is None for e in sinks)
    assert {0, 1} <= set(heads)
    assert memory["written"] < len(sources) and memory["written"] == sum(head is not None for head in heads)
    assert memory["dead"] <= memory["readable"] <= memory["written"]
    assert len(memory["write"][0]) == 2 and len(memory["sinks"]) == told["total"]["tokens"]


@pytest.mark.parametrize("variant", ["recommended", pytest.param("xl", marks=pytest.mark.slow)])
def test_the_page_is_light(variant: str) -> None:
    """Four layers over 20 000 tokens: under 5 MB, with every number that the page shows."""
    torch.manual_seed(0)
    config = ModelConfig.preset(
        "tiny", variant, vocab_size=BYTES.vocab_size, d_model=16, n_layers=4, n_heads=4
    )
    told = told_of(LanguageModel(config), ["All is written, and then it is read again; so it goes. " * 364])
    assert told["total"]["tokens"] == 20_021
    assert len(page(told).encode()) < 5_000_000


def hostile_model() -> LanguageModel:
    return make_model("recommended", dtype=torch.float32, vocab_size=BYTES.vocab_size)


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"><!-- {{js}} {{data}} \u2028 &amp;'


def test_a_text_stays_text() -> None:
    told = told_of(hostile_model(), [HOSTILE])
    told["text"]["name"] = told["text"]["documents"][0]["name"] = told["model"]["name"] = HOSTILE
    html = page(told)
    assert html.count("</script") == page(told_of(hostile_model(), ["plain"])).count("</script")
    assert "<img" not in html and 'onerror=\\"' in html and "<!--" not in html
    start = html.index('id="data">') + len('id="data">')
    data = json.loads(html[start : html.index("</script>", start)])
    assert data == json.loads(json.dumps(packed(told)))
    assert "".join(data["text"]["tokens"]) == HOSTILE


def test_only_its_own_script_may_run() -> None:
    html = page(told_of(hostile_model(), ["a text"]))
    assert "default-src 'none'; script-src 'sha256-" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_curves_of_a_run() -> None:
    rows = [
        {
            "kind": "train",
            "step": 1,
            "tokens": 8,
            "loss": 3.0,
            "bits_per_byte": None,
            "openness": [],
            "lr": 1.0,
        },
        {"kind": "eval", "step": 1, "bits_per_byte": 2.0, "accuracy": math.nan},
        {"kind": "skipped", "step": 1, "reason": "loss"},
    ]
    config = {"preset": "tiny", "variant": "xl", "data": {"specs": ["books"]}}
    told = training_contents(config, {"train": {"documents": 1, "bytes": 5, "fingerprint": "f"}}, rows)
    assert told["train"] == [{"step": 1, "tokens": 8, "loss": 3.0, "bits_per_byte": None, "openness": []}]
    assert told["eval"] == [{"step": 1, "bits_per_byte": 2.0}]
    assert told["splits"] == {"train": {"documents": 1, "tokens": None, "bytes": 5}}
    assert told["data"] == ["books"] and byte_tokenizer().vocab_size == BYTES.vocab_size
