"""The store: names, listing, fork, rename, delete, limits."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmat.model import LanguageModel
from rmat.sessions.store import DamagedSession, SessionExists, SessionStore, UnknownSession
from tests.makers.sessions import make_model, make_session, same


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions")


def names(store: SessionStore) -> list[str]:
    return sorted(info.name for info in store.list())


def file_of(store: SessionStore, name: str) -> Path:
    return store.folder / f"{name}.safetensors"


def age(store: SessionStore, name: str, days: float) -> None:
    """Have the session used last so many days ago."""
    then = time.time() - days * 86400
    os.utime(file_of(store, name), (then, then))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# No lock is taken where the name is wrong, and a name that is right leaves its file in the folder itself.
@settings(deadline=None)
@given(name=st.one_of(st.text(max_size=70), st.text("ab.-_/\\\0:A1 ", min_size=1, max_size=8)))
@example(name="../x")
@example(name="..")
@example(name="a/../../x")
@example(name="/tmp/x")
@example(name="C:x")
@example(name="con.txt")
@example(name="x\n")
@example(name="e\u0301")
@example(name="\uff41")
@example(name="a" * 64)
@example(name="a" * 65)
@example(name="locks")
def test_no_name_leaves_the_folder(
    name: str, model: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    store = SessionStore(outside / "sessions")
    try:
        store.save(name, make_session(model), model)
    except ValueError as error:
        assert "no session can be called" in str(error)
        assert files(outside) == []
        with pytest.raises(ValueError, match="no session can be called"):
            store.lock(name)
    else:
        assert files(outside) == [file_of(store, name)] and names(store) == [name]
        assert file_of(store, name).parent == store.folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "_x", "a/b", "a\\b", "a b", "a\0", "caf\u00e9", "x" * 65]
)
def test_wrong_names_are_refused_everywhere(name: str, model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    calls = (
        lambda: store.save(name, make_session(model), model),
        lambda: store.load(name, model),
        lambda: store.fork(name, "y"),
        lambda: store.fork("x", name),
        lambda: store.rename(name, "y"),
        lambda: store.rename("x", name),
        lambda: store.delete(name),
        lambda: store.info(name),
        lambda: store.turns(name),
        lambda: store.exists(name),
        lambda: store.lock(name),
    )
    for call in calls:
        with pytest.raises(ValueError, match="no session can be called"):
            call()
    assert names(store) == ["x"]


@pytest.mark.parametrize("name", ["nul", "CON", "Aux.txt", "com1", "lpt9.a.b", "prn"])
def test_windows_devices_are_no_names(name: str, store: SessionStore) -> None:
    with pytest.raises(ValueError, match="device on Windows"):
        store.exists(name)
    assert not store.exists("nullable") and not store.exists("com10")


def test_names_that_differ_by_case_only_are_refused(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    store.save("Notes", session, model)
    store.save("x", session, model)
    for call in (
        lambda: store.save("notes", session, model),
        lambda: store.fork("x", "NOTES"),
        lambda: store.rename("x", "nOTES"),
    ):
        with pytest.raises(SessionExists, match="'Notes'"):
            call()
    for find in (lambda: store.find("notes", model), lambda: store.require_free("notes")):
        with pytest.raises(SessionExists, match="'Notes'"):
            find()
    store.require_free("other")
    assert store.find("other", model) is None and same(store.find("Notes", model), session)
    assert not store.exists("notes")
    with pytest.raises(UnknownSession, match="did you mean 'Notes'"):
        store.load("notes", model)
    store.rename("Notes", "notes")
    assert names(store) == ["notes", "x"]


def test_a_list_says_what_there_is(model: LanguageModel, store: SessionStore) -> None:
    assert store.list() == [] and not store.folder.exists()
    before = time.time()
    first = store.save("b", make_session(model, 5), model)
    store.save("a", make_session(model, 9), model)
    age(store, "b", days=2)
    age(store, "a", days=3)
    assert [info.name for info in store.list()] == ["b", "a"], "the last used comes first"
    info = store.info("b")
    assert (info.tokens_read, info.turns, info.model) == (5, 2, first.model)
    assert info.nbytes == file_of(store, "b").stat().st_size
    assert before <= info.created <= time.time()
    store.load("a", model)
    assert [info.name for info in store.list()] == ["a", "b"], "a load is a use"


def test_a_list_passes_over_what_is_no_session(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    file_of(store, "damaged").write_bytes(b"nothing")
    file_of(store, "-odd-").write_bytes(b"nothing")
    (store.folder / ".x.partial").write_bytes(b"half")
    (store.folder / "folder.safetensors").mkdir()
    file_of(store, "link").symlink_to(file_of(store, "x"))
    assert names(store) == ["x"] and not store.quarantined
    assert not store.exists("link") and not store.exists("folder") and store.exists("damaged")
    with pytest.raises(DamagedSession):
        store.info("damaged")
    assert store.damaged == ["damaged"]


def test_nothing_but_a_file_is_replaced(model: LanguageModel, store: SessionStore, tmp_path: Path) -> None:
    """Found out before anything is read into the session, too."""
    store.save("x", make_session(model), model)
    (tmp_path / "elsewhere").write_bytes(b"something else")
    file_of(store, "link").symlink_to(tmp_path / "elsewhere")
    file_of(store, "hanging").symlink_to(tmp_path / "nowhere")
    file_of(store, "folder").mkdir()
    os.mkfifo(file_of(store, "pipe"))
    for name in ("link", "hanging", "folder", "pipe"):
        for call in (
            lambda: store.save(name, make_session(model), model),  # noqa: B023
            lambda: store.find(name, model),  # noqa: B023
            lambda: store.require_free(name),  # noqa: B023
            lambda: store.fork("x", name),  # noqa: B023
            lambda: store.rename("x", name),  # noqa: B023
        ):
            with pytest.raises(
                SessionExists, match=f"{name}.safetensors in the folder of sessions is no file"
            ):
                call()
    assert (tmp_path / "elsewhere").read_bytes() == b"something else" and names(store) == ["x"]


def test_times_are_kept_with_the_session(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    created = store.save("x", session, model).created
    assert store.save("x", session, model).created == created
    age(store, "x", days=4)
    loaded = store.load("x", model)
    assert loaded.created == created and loaded.used is not None
    assert time.time() - loaded.used > 3.9 * 86400, "the use before this one"
    assert time.time() - store.info("x").used < 3600
    assert store.save("y", replace(session, created=12.5), model).created == 12.5


def test_a_fork_goes_its_own_way(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    store.save("x", session, model)
    age(store, "x", days=1)
    store.fork("x", "y")
    assert store.info("y").created >= store.info("x").created
    assert time.time() - store.info("x").used < 3600, "a fork is a use"
    store.save("y", make_session(model, 50), model)
    assert same(store.load("x", model), session)
    assert same(store.load("y", model), make_session(model, 50))
    with pytest.raises(SessionExists):
        store.fork("x", "y")
    with pytest.raises(SessionExists):
        store.fork("x", "x")
    with pytest.raises(UnknownSession, match="no session 'z'"):
        store.fork("z", "w")
    assert same(store.load("y", model), make_session(model, 50))


def test_a_damaged_session_is_not_forked(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    data = bytearray(file_of(store, "x").read_bytes())
    data[-1] ^= 1
    file_of(store, "x").write_bytes(data)
    with pytest.raises(DamagedSession):
        store.fork("x", "y")
    assert names(store) == ["x"], "what its header says is intact"


def test_renaming(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    created = store.save("x", session, model).created
    store.save("taken", make_session(model, 3), model)
    assert store.rename("x", "y").created == created
    assert names(store) == ["taken", "y"] and same(store.load("y", model), session)
    with pytest.raises(SessionExists):
        store.rename("y", "taken")
    with pytest.raises(UnknownSession):
        store.rename("x", "z")
    assert store.load("taken", model).tokens_read == 3


def test_deleting(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    (store.folder / ".x.partial").write_bytes(b"text of the session")
    file_of(store, "damaged").write_bytes(b"nothing")
    store.delete("x")
    store.delete("damaged")
    assert files(store.folder) == [], "nothing of it stays, not even its name"
    for use in (store.delete, store.info, lambda name: store.load(name, model)):
        with pytest.raises(UnknownSession):
            use("x")


def test_a_session_of_another_kind_is_not_saved(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    other = make_model(vocab_size=270)
    with pytest.raises(ValueError, match="another configuration"):
        store.save("x", session, other)
    with pytest.raises(ValueError, match="2 rows"):
        store.save("x", replace(session, state=session.state.select([0, 0])), model)
    with pytest.raises(ValueError, match="logits of shape"):
        store.save("x", replace(session, next_logits=torch.zeros(3)), model)
    assert store.list() == []


def filled(store: SessionStore, model: LanguageModel) -> int:
    """Four sessions, `d` the oldest; the size of one."""
    for days, name in enumerate("abcd", 1):
        store.save(name, make_session(model), model)
        age(store, name, days)
    return store.info("a").nbytes


def test_expiry_by_age(model: LanguageModel, tmp_path: Path) -> None:
    filled(SessionStore(tmp_path), model)
    assert SessionStore(tmp_path).expire() == []
    assert SessionStore(tmp_path, max_age_days=2.5).expire(dry_run=True) == ["d", "c"]
    assert SessionStore(tmp_path, max_age_days=2.5).expire() == ["d", "c"]
    store = SessionStore(tmp_path, max_age_days=1.5)
    store.load("b", model)
    assert store.expire() == [] and names(store) == ["a", "b"]


def test_expiry_by_count(model: LanguageModel, tmp_path: Path) -> None:
    filled(SessionStore(tmp_path), model)
    assert SessionStore(tmp_path, max_count=3).expire() == ["d"]
    store = SessionStore(tmp_path, max_count=2)
    store.save("new", make_session(model), model)
    assert names(store) == ["a", "new"]
    store.fork("a", "copy")
    assert names(store) == ["a", "copy"]


def test_expiry_by_size(model: LanguageModel, tmp_path: Path) -> None:
    size = filled(SessionStore(tmp_path), model)
    assert SessionStore(tmp_path, max_bytes=3 * size).expire() == ["d"]
    assert SessionStore(tmp_path, max_bytes=3 * size - 1).expire() == ["c"]
    assert SessionStore(tmp_path, max_bytes=0, max_age_days=1e6).expire() == ["b", "a"]


def test_what_was_just_saved_never_expires(model: LanguageModel, tmp_path: Path) -> None:
    for limits in ({"max_count": 0}, {"max_bytes": 10}, {"max_age_days": 0}):
        store = SessionStore(tmp_path, **limits)
        store.save("x", make_session(model), model)
        assert names(store) == ["x"]


@pytest.mark.parametrize(
    "limits", [{"max_count": -1}, {"max_bytes": float("inf")}, {"max_age_days": float("nan")}]
)
def test_limits_that_are_none_are_refused(limits: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or leave it out"):
        SessionStore(tmp_path, **limits)


def test_where_sessions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("RMAT_SESSIONS", str(tmp_path / "named"))
    assert SessionStore().folder == (tmp_path / "named").resolve()
    monkeypatch.delenv("RMAT_SESSIONS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert SessionStore().folder == (tmp_path / "data" / "rmat" / "sessions").resolve()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert SessionStore().folder == (tmp_path / "home" / ".local/share/rmat/sessions").resolve()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        SessionStore(tmp_path / "file")
