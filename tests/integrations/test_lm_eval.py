"""lm-eval with our models: tasks over local files, scores beside our own evaluation. `make lm-eval-check` installs
lm-eval (740 MB) and runs this."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rmat
from rmat.data.documents import encode_turns
from rmat.data.store import TokenStore
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.asking import answers
from rmat.evaluation.perplexity import perplexity
from rmat.model import LanguageModel
from rmat.tasks.passkey import PasskeyQuestions
from rmat.tasks.task import texts_of
from tests.makers.models import make_model
from tests.makers.pretrained import source_folder
from tests.makers.texts import make_store, write_jsonl

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: make lm-eval-check")

from lm_eval.tasks import TaskManager  # noqa: E402

from rmat.integrations import lm_eval as ours  # noqa: E402
from rmat.integrations.lm_eval import RmatLM  # noqa: E402

DOCUMENTS = ["word and word again. " * 30, "a", "Ünïcode, and a line\nof its own", "x" * 700]
QUESTIONS = [
    {
        "context": "It rained all day. " * 8,
        "question": f"What fell {n}?",
        "choices": ["rain", "snow here", "a"],
    }
    for n in range(5)
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}\nQ: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}\nQ: {{question}}\nA:",
        "doc_to_target": "rain",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
    "passkey": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{key}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 13},
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}]}],
        "metric_list": [{"metric": "exact_match"}],
    },
}
DATA = {"rolling": "documents", "passkey": "keys"}
"""Files of the tasks that ask other than QUESTIONS."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return rmat.load_tokenizer("bytes")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return make_model("recommended", vocab_size=tokenizer.vocab_size, dtype=torch.float64)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks over local files."""
    folder = tmp_path_factory.mktemp("tasks")
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "documents.jsonl", [{"text": text} for text in DOCUMENTS])
    for name, task in TASKS.items():
        data = DATA.get(name, "questions")
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}},
            "test_split": "test",
            "metadata": {"version": 1},
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    return folder


def evaluated(lm: RmatLM, tasks: Path, name: str, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )
    return {**found["results"][name], "samples": found["samples"][name]}


def alone(model: LanguageModel, tokenizer: Tokenizer, text: str, memory: Any = "on") -> Tensor:
    """Log-likelihood of every token of a text, read by itself in one call."""
    ids = torch.tensor([[*tokenizer.opening, *tokenizer.encode(text)]])
    with torch.no_grad():
        logits, _ = model(ids[:, :-1], memory=memory)
    return logits.double().log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]


@pytest.mark.parametrize("memory", ["on", "zeroed"])
def test_whole_documents_are_what_our_evaluation_says(
    model: LanguageModel, tokenizer: Tokenizer, tasks: Path, tmp_path: Path, memory: Any
) -> None:
    lm = RmatLM(model, tokenizer, batch_size=3, memory=memory)
    found = evaluated(lm, tasks, "rolling")
    store: TokenStore = make_store(tmp_path / "store", DOCUMENTS)
    expected = perplexity(model, tokenizer, store, memory=memory)
    assert found["bits_per_byte,none"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    other = perplexity(model, tokenizer, store, memory="zeroed" if memory == "on" else "on")
    assert found["bits_per_byte,none"] != pytest.approx(other.bits_per_byte, rel=1e-4)


def test_nothing_is_cut_off(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """A document far longer than any window, in one pass: its first tokens reach the last ones."""
    lm = RmatLM(model, tokenizer, batch_size=2)
    text = "the key is 42. " + "nothing to see here. " * 700
    whole = alone(model, tokenizer, text)
    assert len(whole) > 14_000
    requests = [type("Request", (), {"args": (one,)})() for one in (text, text[20:])]
    long, _ = lm.loglikelihood_rolling(requests)
    assert long == pytest.approx(float(whole.sum()), rel=1e-9)


def test_choices_are_scored_as_alone(model: LanguageModel, tokenizer: Tokenizer, tasks: Path) -> None:
    for batch_size in (1, 4):
        found = evaluated(RmatLM(model, tokenizer, batch_size=batch_size), tasks, "choice")
        right = 0
        for sample, question in zip(found["samples"], QUESTIONS, strict=True):
            context = f"{question['context']}\nQ: {question['question']}\nA:"
            expected = []
            for text in question["choices"]:
                expected.append(float(alone(model, tokenizer, f"{context} {text}")[-len(text) - 1 :].sum()))
            scores = [float(nats) for nats, _ in sample["filtered_resps"]]
            assert scores == pytest.approx(expected, rel=1e-9)
            right += int(np.argmax(expected)) == 0
        assert found["acc,none"] == right / len(QUESTIONS)


def test_what_is_in_front_of_several_questions_is_read_once(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, read = RmatLM(model, tokenizer, batch_size=4), []
    hidden = type(model).hidden

    def counted(self: LanguageModel, tokens: Tensor, *args: Any, **options: Any) -> Any:
        valid = options.get("valid")
        read.append(tokens.numel() if valid is None else int(valid.sum()))
        return hidden(self, tokens, *args, **options)

    monkeypatch.setattr(type(model), "hidden", counted)
    document = "".join(map(str, range(600)))
    pairs = [(f"{document} {n}?", text) for n in range(6) for text in (" yes", " no")]
    others = [("", "begins"), ("a short one", " and more"), ("a short two", "")]
    requests = [type("Request", (), {"args": pair})() for pair in [*pairs, *others]]
    found = lm.loglikelihood(requests)
    assert sum(read) < len(document) + 200
    monkeypatch.undo()
    for (context, text), (nats, greedy) in zip([*pairs, *others], found, strict=True):
        expected = alone(model, tokenizer, context + text)[len(context) :]
        assert nats == pytest.approx(float(expected.sum()), rel=1e-9), (context, text)
        ids = torch.tensor([[*tokenizer.opening, *tokenizer.encode(context + text)]])
        with torch.no_grad():
            likeliest = model(ids[:, :-1])[0].argmax(-1)
        assert greedy is bool((likeliest == ids[:, 1:])[0, len(context) :].all())


def test_texts_are_those_of_generate(model: LanguageModel, tokenizer: Tokenizer, tasks: Path) -> None:
    found = evaluated(RmatLM(model, tokenizer, batch_size=3), tasks, "writing")
    for sample, question in zip(found["samples"], QUESTIONS, strict=True):
        context = f"{question['context']}\nQ: {question['question']}\nA:"
        ids = [*tokenizer.opening, *tokenizer.encode(context)]
        expected = rmat.generate(model, tokenizer, ids, max_new_tokens=12, temperature=0, stop=["\n", "e"])
        assert sample["resps"][0][0] == "".join(expected)
    lm = RmatLM(model, tokenizer)
    drawn = [type("R", (), {"args": ("a", {"do_sample": True, "top_k": 5})})() for _ in range(2)]
    first = lm.generate_until(drawn)
    assert first == RmatLM(model, tokenizer, batch_size=1).generate_until(drawn)
    assert first[0] != first[1]
    with pytest.raises(ValueError, match="'num_beams' is not known"):
        lm.generate_until([type("R", (), {"args": ("a", {"num_beams": 2})})()])


def test_pass_keys_are_scored_as_by_our_evaluation(
    model: LanguageModel, tokenizer: Tokenizer, tasks: Path
) -> None:
    """Half of the keys are what the model says, so that both answers are scored."""
    questions = PasskeyQuestions(length=(300,), depth=(0.5,))
    (cell,) = questions.cells(tokenizer, 4, 3)
    ours = list(answers(model, tokenizer, cell.examples, max_new_tokens=questions.max_new_tokens))
    rows, scores = [], []
    for number, (example, said) in enumerate(zip(cell.examples, ours, strict=True)):
        known = dataclasses.replace(example, references=(said.strip(),) if number % 2 else example.references)
        rows.append({"context": "".join(texts_of(example.pieces)), "key": known.references[0]})
        scores.append(questions.score(said, known))
    write_jsonl(tasks / "keys.jsonl", rows)
    found = evaluated(RmatLM(model, tokenizer), tasks, "passkey")
    assert [sample["resps"][0][0] for sample in found["samples"]] == ours
    assert found["exact_match,none"] == np.mean(scores) == 0.5


def test_chats_are_written_as_in_training(
    model: LanguageModel, tokenizer: Tokenizer, tasks: Path, tmp_path: Path
) -> None:
    lm = RmatLM(model, tokenizer)
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say <|assistant|>!"}]
    turns = [(turn["role"], turn["content"]) for turn in history]
    assert lm.tok_encode(lm.apply_chat_template(history)) == encode_turns(tokenizer, turns, answer=True)
    begun = lm.apply_chat_template([*history, {"role": "assistant", "content": "So"}], False)
    assert lm.tok_encode(begun) == encode_turns(tokenizer, turns, answer=True, begun="So")
    assert math.isfinite(evaluated(lm, tasks, "choice", apply_chat_template=True, num_fewshot=0)["acc,none"])
    other, words = rmat.from_pretrained(source_folder(tmp_path / "llama"), window=32, n_slots=16)
    imported = RmatLM(other, words)
    expected = [*words.opening, *imported.tok_encode(imported.apply_chat_template(history))]
    assert expected == [*words.opening, *encode_turns(words, turns, "text", answer=True)]


def test_the_command_line(
    model: LanguageModel,
    tokenizer: Tokenizer,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    model.save(tmp_path / "model", tokenizer)
    given = f"pretrained={tmp_path / 'model'},memory=zeroed"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "lm_eval",
            "--model",
            "rmat",
            "--model_args",
            given,
            "--tasks",
            "rolling",
            "--device",
            "cpu",
            "--include_path",
            str(tasks),
        ],
    )
    ours.main()
    assert "bits_per_byte" in capsys.readouterr().out
    with pytest.raises(ValueError, match="memory"):
        RmatLM(model, tokenizer, memory="shuffled")
