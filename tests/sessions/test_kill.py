"""A process killed while it saves loses the save under way, and nothing else."""

import multiprocessing
import random
import re
import time
from pathlib import Path

import torch

from rmat.sessions.store import SessionStore
from tests.makers.sessions import make_model, make_session, save_for_ever

KILLS = 60


def test_kills_while_saving(tmp_path: Path) -> None:
    # Children of a server that has imported everything: a start takes milliseconds, and no threads are inherited.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.makers.sessions"])
    model, store = make_model(), SessionStore(tmp_path / "sessions")
    # Large enough that writing takes a good part of a save.
    turns = tuple(("user", f"{number} " * 2000) for number in range(100))
    session = make_session(model)
    store.save("x", type(session)(**{**vars(session), "turns": turns, "tokens_read": 0}), model)
    draw, cut, left = random.Random(0), 0, 0
    for kill in range(KILLS):
        log = tmp_path / f"log{kill}"
        child = processes.Process(target=save_for_ever, args=(store.folder, log), daemon=True)
        child.start()
        while not (log.exists() and b">" in log.read_bytes()):
            assert child.is_alive()
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        child.kill()
        child.join()
        notes = re.findall(r"([<>])(\d+)", log.read_text())
        begun = max(int(number) for mark, number in notes if mark == "<")
        done = max(int(number) for mark, number in notes if mark == ">")
        cut += begun > done
        left += len(list(store.folder.glob(".*")))
        loaded = store.load("x", model)
        assert loaded.tokens_read in (begun, done), "one of the last two"
        assert torch.equal(loaded.next_logits, torch.full_like(loaded.next_logits, loaded.tokens_read))
        assert loaded.turns == turns
        assert [info.name for info in store.list()] == ["x"]
    assert cut > KILLS / 4, "the kills came while saving"
    assert left > 0, "and some while writing"
    store.expire()
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["x.safetensors"]
    assert not store.quarantined
