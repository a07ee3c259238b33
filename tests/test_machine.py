"""What a result depends on is written down, and the generators can be kept and put back."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rmat import machine as environment
from rmat.machine import describe_environment, git_commit, pick_device
from rmat.training import process


def test_versions_machine_and_seed_are_named() -> None:
    described = describe_environment(torch.device("cpu"), seed=5)
    assert described["versions"]["torch"] == torch.__version__
    assert described["versions"].keys() >= {"rmat", "numpy", "safetensors", "tokenizers"}
    assert (described["seed"], described["device"]) == (5, "cpu")
    assert described["python"] and described["platform"]
    assert described["threads"] == torch.get_num_threads() and described["device_name"]
    assert describe_environment("cpu")["seed"] is None


def test_the_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    file = tmp_path / "package" / "machine.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(environment, "__file__", str(file))
    git("init")
    assert git_commit() is None
    git("add", ".")
    git("commit", "-m", "first")
    assert git_commit() == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_the_device_and_why() -> None:
    assert pick_device("cpu") == (torch.device("cpu"), "asked for")
    device, reason = pick_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu") and reason


def draws() -> tuple[list[float], float, float]:
    return torch.rand(3).tolist(), random.random(), float(np.random.randn())


def test_random_numbers_go_on_where_they_were() -> None:
    process.seed_everything(1)
    np.random.randn()
    random.gauss(0, 1)
    kept = process.capture()
    first = draws()
    process.restore(*kept)
    assert draws() == first
    process.restore(*kept)
    with process.undisturbed():
        draws()
    assert draws() == first


def test_without_a_home_the_named_folders_are_taken_and_others_asked_for() -> None:
    """In a process of its own, which has no account either."""
    code = """
import json, os, pwd
def none(uid): raise KeyError(uid)
pwd.getpwuid = none
from rmat.machine import *
def told(act, **variables):
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "RMAT_CACHE", "RMAT_SESSIONS"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try: return str(act())
    except ValueError as error: return str(error)
print(json.dumps([
    told(cache_folder, XDG_CACHE_HOME="/c"), told(sessions_folder, XDG_DATA_HOME="/d"),
    told(cache_folder, RMAT_CACHE="/e"), told(sessions_folder, RMAT_SESSIONS="/f"),
    told(cache_folder), told(sessions_folder), told(lambda: expand("~/x")),
]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *folders, cache, sessions, home = json.loads(done.stdout)
    assert folders == ["/c/rmat", "/d/rmat/sessions", "/e", "/f"]
    assert "HOME is not set" in cache and "set HOME, or RMAT_CACHE to a folder" in cache
    assert "HOME is not set" in sessions and "set HOME, or RMAT_SESSIONS to a folder" in sessions
    assert home == "'~/x' begins with a home folder that is not known: give the whole path"
