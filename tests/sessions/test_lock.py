"""One user of a session at a time."""

import asyncio
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from rmat.model import LanguageModel
from rmat.sessions.store import SessionBusy, SessionStore
from tests.makers.sessions import count_up, hold_for_ever, make_model, make_session


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture
def store(model: LanguageModel, tmp_path: Path) -> SessionStore:
    store = SessionStore(tmp_path / "sessions")
    store.save("x", make_session(model, 1), model)
    return store


def in_thread(work: object) -> BaseException | None:
    """What `work` raised in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_no_change_is_lost(kind: str, model: LanguageModel, store: SessionStore) -> None:
    if kind == "processes":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.makers.sessions"])
        workers = [context.Process(target=count_up, args=(store.folder, 10)) for _ in range(3)]
    else:
        workers = [threading.Thread(target=count_up, args=(store.folder, 10, model)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert store.load("x", model).tokens_read == 31


def test_the_lock_of_a_killed_process_is_free(store: SessionStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.makers.sessions"])
    child = context.Process(target=hold_for_ever, args=(store.folder, tmp_path / "told"), daemon=True)
    child.start()
    while not (tmp_path / "told").exists():
        assert child.is_alive()
        time.sleep(0.01)
    told = f"'x' is in use by process {child.pid}.*rmat sessions fork x NEW-NAME"
    for _ in range(2):
        with pytest.raises(SessionBusy, match=told), store.lock("x", timeout=0.1):
            pass
    child.kill()
    child.join()
    with store.lock("x", timeout=0):
        assert [path.name for path in (store.folder / "locks").iterdir()] == ["x.lock"]
    assert list((store.folder / "locks").iterdir()) == [], "not even a name stays"


def test_a_busy_session_is_not_changed(model: LanguageModel, store: SessionStore) -> None:
    store = SessionStore(store.folder, wait=0)
    store.save("y", make_session(model), model)
    calls = (
        lambda: store.save("x", make_session(model), model),
        lambda: store.fork("y", "x"),
        lambda: store.rename("x", "z"),
        lambda: store.rename("y", "x"),
        lambda: store.delete("x"),
    )
    with store.lock("x"):
        for call in calls:
            assert isinstance(in_thread(call), SessionBusy)
        assert in_thread(lambda: store.load("x", model)) is None, (
            "reading needs no lock: files are replaced whole"
        )
        in_thread(lambda: store.fork("x", "z"))
    assert sorted(info.name for info in store.list()) == ["x", "y", "z"]
    assert store.load("x", model).tokens_read == 1


def test_the_holder_does_not_wait_for_itself(model: LanguageModel, store: SessionStore) -> None:
    with store.lock("x"), store.lock("x", timeout=0):
        store.save("x", make_session(model, 2), model)
        store.fork("x", "y")
        store.rename("x", "z")
    with store.lock("z"):
        store.delete("z")
        assert isinstance(in_thread(lambda: store.lock("z", timeout=0).__enter__()), SessionBusy)
    with store.lock("z", timeout=0):
        pass


def test_a_task_holds_its_lock_while_a_thread_saves(model: LanguageModel, store: SessionStore) -> None:
    async def change() -> None:
        with store.lock("x"):
            await asyncio.wait_for(asyncio.to_thread(store.save, "x", make_session(model, 7), model), 30)

    asyncio.run(change())
    assert store.load("x", model).tokens_read == 7


def test_a_lock_can_be_left_in_another_thread(store: SessionStore) -> None:
    lock = store.lock("x")
    lock.__enter__()
    assert in_thread(lambda: lock.__exit__(None, None, None)) is None
    other = store.lock("x", timeout=0)
    assert in_thread(other.__enter__) is None
    with pytest.raises(SessionBusy), store.lock("x", timeout=0):
        pass
    other.__exit__(None, None, None)


def test_locks_are_of_one_session_in_whatever_case(store: SessionStore) -> None:
    with store.lock("x"):
        assert in_thread(lambda: store.lock("y", timeout=0).__enter__()) is None
        assert isinstance(in_thread(lambda: store.lock("X", timeout=0).__enter__()), SessionBusy)


@pytest.mark.parametrize("names", [("x", "y"), ("y", "x")])
def test_two_locks_are_taken_in_one_order(
    names: tuple[str, str], model: LanguageModel, store: SessionStore
) -> None:
    """So that of two processes none holds what the other waits for."""
    with store.lock("x"):
        thread = threading.Thread(target=lambda: store.rename(*names))
        thread.start()
        for _ in range(20):
            time.sleep(0.02)
            with store.lock("y", timeout=0):
                pass
        if names[0] == "y":
            store.save("y", make_session(model), model)
            store.delete("x")
    thread.join()
    assert [info.name for info in store.list()] == [names[1]]


def test_what_is_in_use_does_not_expire(model: LanguageModel, store: SessionStore) -> None:
    store.save("y", make_session(model), model)
    few = SessionStore(store.folder, max_count=0)
    with store.lock("x"):
        assert few.expire() == ["y"], "not even where the holder itself asks"
        few.save("z", make_session(model), model)
        few.save("w", make_session(model), model)
        assert sorted(info.name for info in store.list()) == ["w", "x"]
    assert few.expire() == ["x", "w"]


def test_a_save_under_way_is_not_swept_away(store: SessionStore) -> None:
    partial = store.folder / ".x.partial"
    partial.write_bytes(b"half")
    (store.folder / "locks" / "y.lock").touch()
    with store.lock("x"):
        store.expire()
        assert partial.exists()
    store.expire()
    assert not partial.exists() and not list((store.folder / "locks").iterdir())
