"""Whatever is drawn, the text is one that the grammar allows, or the beginning of one that was cut."""

import json
import re
import sys
from itertools import zip_longest
from typing import Any

import jsonschema_rs
import pytest
import torch

import rmat
from rmat.data.tokenizer import Tokenizer, train_bpe
from rmat.generation.row import Row
from rmat.generation.sampling import SamplingConfig
from rmat.generation.stream import generate
from rmat.model import LanguageModel
from tests.data.test_tokenizer import llama_like

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["cat", "dog", None]},
        "legs": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
        "owner": {"$ref": "#/$defs/person"},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
            "additionalProperties": False,
        }
    },
}


def write(
    tokenizer: Tokenizer, grammar: str, *, seed: int = 0, n: int = 600, **options: Any
) -> tuple[Row, str]:
    """A text drawn from logits that are nothing but noise, and its row."""
    noise = torch.Generator().manual_seed(seed)
    sampling = SamplingConfig(grammar=grammar, **{"temperature": 1.0, "seed": seed, **options})
    row, text = Row(tokenizer, max_new_tokens=n, sampling=sampling, stop=()), ""
    while (token := row.draw(3 * torch.randn(tokenizer.vocab_size, generator=noise))) is not None:
        text += row.show(token)
    return row, text + row.rest()


@pytest.fixture(scope="module", params=["bytes", "bpe", "byte fallback"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each kind of vocabulary: bytes, merges, and one that puts a blank before each text."""
    if request.param == "bytes":
        return rmat.load_tokenizer("bytes")
    if request.param == "bpe":
        return train_bpe(['{"name": "dog", "legs": [1, 2]}\n  '] * 9, 300)
    return Tokenizer(llama_like())


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}, {"temperature": 0}])
def test_every_text_is_valid_by_its_schema(any_tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    texts = set()
    for seed in range(5):
        row, text = write(any_tokenizer, rmat.json_grammar(SCHEMA), seed=seed, **options)
        assert row.finish == "end", text
        jsonschema_rs.validate(SCHEMA, json.loads(text))
        texts.add(text)
    assert len(texts) == 5


def test_a_text_that_was_cut_is_the_beginning_of_one(any_tokenizer: Tokenizer) -> None:
    whole, _ = write(any_tokenizer, rmat.json_grammar(SCHEMA))
    for length in (1, 5, len(whole.tokens) - 2):
        cut, _ = write(any_tokenizer, rmat.json_grammar(SCHEMA), n=length)
        assert cut.finish == "length" and cut.tokens == whole.tokens[:length]


def test_any_object_is_json(any_tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in range(10):
        row, text = write(any_tokenizer, rmat.json_grammar({"type": "object"}), seed=seed, n=150)
        assert row.finish == "length" or isinstance(json.loads(text), dict)
        ended += row.finish == "end"
    assert ended


def test_blanks_between_the_parts_have_an_end(tokenizer: Tokenizer) -> None:
    """Who likes nothing better than blanks still comes to the end."""
    bias = dict.fromkeys(tokenizer.encode(" \n\t\r"), 100)
    row, text = write(tokenizer, rmat.json_grammar({"const": {"a": 1}}), logit_bias=bias)
    assert row.finish == "end" and json.loads(text) == {"a": 1} and len(text) > 30


def test_other_languages_than_json(any_tokenizer: Tokenizer) -> None:
    texts = {write(any_tokenizer, 'start: "yes" | "no, " /[a-c]{3}/', seed=seed)[1] for seed in range(9)}
    assert "yes" in texts and all(re.fullmatch("yes|no, [abc]{3}", text) for text in texts)


def test_the_end_of_the_grammar_comes_before_min_tokens(tokenizer: Tokenizer) -> None:
    row, text = write(tokenizer, 'start: "yes" "!"*', min_tokens=7)
    assert text.startswith("yes!!!!") and len(row.tokens) >= 7
    assert write(tokenizer, 'start: "yes"', min_tokens=7)[1] == "yes"


def test_biases_and_penalties_do_not_lift_what_is_forbidden(tokenizer: Tokenizer) -> None:
    options = {"repetition_penalty": 2.0, "frequency_penalty": 2.0, "logit_bias": {ord("x"): 100.0}}
    assert json.loads(write(tokenizer, rmat.json_grammar({"const": "a" * 10}), **options)[1]) == "a" * 10


def test_each_text_has_a_place_of_its_own_in_the_grammar(model: LanguageModel, tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"grammar": rmat.json_grammar(SCHEMA), "max_new_tokens": 20, "temperature": 1.5}
    alone = [list(generate(model, tokenizer, "once", seed=seed, **options)) for seed in (1, 2)]
    first, second = (generate(model, tokenizer, "once", seed=seed, **options) for seed in (1, 2))
    together = list(zip_longest(first, second))
    assert [piece for piece, _ in together if piece] == alone[0]
    assert [piece for _, piece in together if piece] == alone[1]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "foo"}, r"followed \(failed to compile JSON schema: Invalid type: foo\): change that part"),
        ({"$ref": "#/nope"}, "Pointer '/nope' does not exist"),
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "Unsatisfiable"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#"}, "cannot go on by its grammar: NoExtensionBias$"),
        ({"type": "array", "items": {"type": ["integer", 3]}}, "cannot be followed"),
        ({"properties": {f"p{n}": {"type": "string"} for n in range(3000)}}, "grammar"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_at_the_call(
    model: LanguageModel, tokenizer: Tokenizer, schema: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        generate(model, tokenizer, "once", grammar=rmat.json_grammar(schema))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_what_is_no_grammar(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match='unknown name: "b"'):
        generate(model, tokenizer, "once", grammar="start: b")
    with pytest.raises(ValueError, match="give text"):
        generate(model, tokenizer, "once", grammar=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the JSON schema is list: give an object"):
        rmat.json_grammar([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        rmat.json_grammar({"const": {1, 2}})


def test_without_the_package_the_sentence_names_the_extra(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rmat\[grammar\]'"):
        generate(model, tokenizer, "once", grammar='start: "a"')
