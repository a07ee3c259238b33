"""`rmat sessions`, without loading a model."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmat.cli.sessions import human_age
from rmat.sessions.file import ReadDocument
from rmat.sessions.store import SessionStore
from tests.cli.conftest import Rmat, in_new_process
from tests.makers.sessions import make_model, make_session


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    """Sessions `a`, `b` and `c`, last used one, two and three days ago."""
    store, model = SessionStore(tmp_path / "sessions"), make_model()
    turns = (("user", "What?\nReally?"), ("assistant", "No \x1b[31m\x9bred\x07 \ud800 [b]."))
    for days, name in enumerate("abc", 1):
        store.save(name, replace(make_session(model), turns=turns), model)
        then = time.time() - days * 86400 - 60
        os.utime(store.folder / f"{name}.safetensors", (then, then))
    return store


def names(store: SessionStore) -> list[str]:
    return sorted(info.name for info in store.list())


def test_list(rmat: Rmat, store: SessionStore) -> None:
    (store.folder / "quarantine").mkdir()
    (store.folder / "quarantine" / "x.1.safetensors").write_bytes(b"damaged")
    outcome = rmat("sessions", "list", "--sessions", store.folder)
    lines = outcome.out.splitlines()
    assert outcome.status == 0 and [line.split()[0] for line in lines[:4]] == ["session", "a", "b", "c"]
    assert (
        "1 day ago" in lines[1] and "2 days ago" in lines[2] and "KiB" in lines[1] and "just now" in lines[1]
    )
    assert lines[4].startswith("3 sessions, ") and str(store.folder) in lines[4]
    assert lines[5] == f"1 damaged file in {store.folder / 'quarantine'}"
    result = rmat("sessions", "list", "--sessions", store.folder, "--json").json
    assert result["folder"] == str(store.folder)
    assert result["quarantined"] == [str(store.folder / "quarantine" / "x.1.safetensors")]
    info = store.info("a")
    assert result["sessions"][0] == {
        "name": "a",
        "tokens_read": 21,
        "turns": 2,
        "created": info.created,
        "used": info.used,
        "model": info.model,
        "bytes": info.nbytes,
        "model_name": None,
        "documents": [],
        "reading": 0,
    }
    assert result["damaged"] == []


def test_an_empty_list(rmat: Rmat, tmp_path: Path) -> None:
    outcome = rmat("sessions", "list", "--sessions", tmp_path / "none")
    assert outcome.out == f"0 sessions, 0 bytes, in {tmp_path / 'none'}\n"
    assert rmat("sessions", "list", "--sessions", tmp_path / "none", "--json").json["sessions"] == []
    assert not (tmp_path / "none").exists()


def test_the_folder_of_the_environment(
    rmat: Rmat, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMAT_SESSIONS", str(store.folder))
    assert len(rmat("sessions", "list", "--json").json["sessions"]) == 3


def test_show(rmat: Rmat, store: SessionStore) -> None:
    outcome = rmat("sessions", "show", "a", "--sessions", store.folder)
    assert outcome.status == 0 and "tokens read" in outcome.out and store.info("a").model in outcome.out
    assert outcome.out.endswith(
        "\nuser: What?\nReally?\n\nassistant: No \ufffd[31m\ufffdred\ufffd \ufffd [b].\n"
    )
    history = rmat("sessions", "show", "a", "--sessions", store.folder, "--json").json["history"]
    assert history[0] == {"role": "user", "content": "What?\nReally?"}
    assert history[1]["content"] == "No \x1b[31m\x9bred\x07 \ufffd [b]."


def test_changes(rmat: Rmat, store: SessionStore) -> None:
    here: tuple[Any, ...] = ("--sessions", store.folder)
    assert rmat("sessions", "fork", "a", "d", *here).out == "forked a as d\n"
    assert rmat("sessions", "rename", "b", "e", *here).out == "renamed b to e\n"
    assert rmat("sessions", "delete", "c", *here).out == "deleted c\n"
    assert names(store) == ["a", "d", "e"]
    assert rmat("sessions", "fork", "a", "f", *here, "--json").json["name"] == "f"
    assert rmat("sessions", "rename", "f", "g", *here, "--json").json["name"] == "g"
    assert rmat("sessions", "delete", "g", *here, "--json").json == {"deleted": ["g"]}
    assert names(store) == ["a", "d", "e"]


def test_expire(rmat: Rmat, store: SessionStore) -> None:
    here: tuple[Any, ...] = ("--sessions", store.folder)
    assert rmat("sessions", "expire", "--max-age-days", "9", *here).out == "deleted nothing\n"
    tried = ("sessions", "expire", "--max-age-days", "2.5", "--dry-run")
    assert rmat(*tried, *here).out == "would delete c\n"
    assert rmat(*tried, *here, "--json").json == {"would_delete": ["c"]} and names(store) == ["a", "b", "c"]
    assert rmat("sessions", "expire", "--max-age-days", "2.5", *here).out == "deleted c\n"
    assert rmat("sessions", "expire", "--max-count", "1", *here, "--json").json == {"deleted": ["b"]}
    assert rmat("sessions", "expire", "--max-bytes", "1", *here).out == "deleted a\n"
    assert "give --max-age-days" in rmat("sessions", "expire", *here).refused()
    assert "max_count is -1" in rmat("sessions", "expire", "--max-count", "-1", *here).refused()


def test_mistakes_are_one_sentence(rmat: Rmat, store: SessionStore) -> None:
    here: tuple[Any, ...] = ("--sessions", store.folder)
    for action in (["show", "z"], ["fork", "z", "y"], ["rename", "z", "y"], ["delete", "z"]):
        assert "there is no session 'z'" in rmat("sessions", *action, *here).refused()
    assert "no session can be called '../a'" in rmat("sessions", "delete", "../a", *here).refused()
    assert "there is a session 'b' already" in rmat("sessions", "fork", "a", "b", *here).refused()
    assert "did you mean 'list'" in rmat("sessions", "lst").refused()
    assert rmat("sessions", "delete").refused()
    (store.folder / "a.safetensors").write_bytes(b"")
    assert "'a' is damaged" in rmat("sessions", "show", "a", *here).refused()
    assert names(store) == ["b", "c"]
    listed = rmat("sessions", "list", *here)
    assert "\n1 damaged session, to delete or to begin anew: a\n" in listed.out
    assert rmat("sessions", "list", *here, "--json").json["damaged"] == ["a"]
    with store.lock("b"):
        in_use = in_new_process(["sessions", "delete", "b", *map(str, here)], cwd=store.folder.parent)
    assert f"'b' is in use by process {os.getpid()}" in in_use.refused()


def test_what_a_card_is_of(rmat: Rmat, store: SessionStore) -> None:
    model = make_model()
    documents = (
        ReadDocument(name="a [b].txt", bytes=2000, sha256="0", tokens=1990, bytes_read=2000, complete=True),
        ReadDocument(name="x" * 90 + "\n\x1b.md", bytes=1000, sha256="1", tokens=100, bytes_read=100),
        ReadDocument(name="c.txt", bytes=400, sha256="2"),
    )
    store.save("card", replace(make_session(model), documents=documents, reading=2), model)
    listed = rmat("sessions", "list", "--sessions", store.folder).out.splitlines()
    assert len(listed) == 1 + 4 + 1, "one line a row"
    row = next(line for line in listed if line.startswith("card"))
    assert "a [b].txt and 2 more" in row and row.endswith(store.info("card").model)
    shown = rmat("sessions", "show", "card", "--sessions", store.folder).out.splitlines()
    (start,) = (number for number, line in enumerate(shown) if line.startswith("document "))
    assert [line.split()[-3:] for line in shown[start + 1 : start + 4]] == [
        ["2,000", "2,000", "1,990"],
        ["1,000", "100", "100"],
        ["400", "0", "0"],
    ]
    assert "a [b].txt" in shown[start + 1] and "x" * 90 + "\ufffd\ufffd.md" in shown[start + 2]
    assert shown[start + 4].endswith("and 1 more: 7% of 1.367 KiB are read")
    found = rmat("sessions", "show", "card", "--sessions", store.folder, "--json").json
    assert [each["bytes_read"] for each in found["documents"]] == [2000, 100, 0] and found["reading"] == 2


def test_as_a_user_runs_it(store: SessionStore, tmp_path: Path) -> None:
    outcome = in_new_process(["sessions", "list", "--sessions", store.folder, "--json"], cwd=tmp_path)
    assert outcome.status == 0 and len(json.loads(outcome.out)["sessions"]) == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"),
        (30, "just now"),
        (61, "1 minute ago"),
        (7300, "2 hours ago"),
        (86400 * 400, "400 days ago"),
    ],
)
def test_ages(seconds: float, words: str) -> None:
    assert human_age(time.time() - seconds) == words
