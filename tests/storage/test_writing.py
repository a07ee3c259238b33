"""A file is there whole or as it was before, and nothing but a regular file is ever replaced."""

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.storage import (
    NotWritten,
    load_state,
    replacing_folder,
    save_state,
    write_file,
    write_json,
    write_tensors,
)

TENSORS = {"b": torch.arange(4.0), "a": torch.zeros(2, dtype=torch.int64)}


def as_text(path: Path) -> None:
    write_file(path, "new")


def as_tensors(path: Path) -> None:
    write_tensors(path, TENSORS, {"one": "1", "two": "2"})


WRITERS = pytest.mark.parametrize("write", [as_text, as_tensors])


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 300 bytes: writing ends as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@WRITERS
def test_a_new_file_has_the_permissions_of_the_process(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


@WRITERS
def test_a_replaced_file_keeps_its_permissions(write: Callable[[Path], None], tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.touch()
    target.chmod(0o640)
    write(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 and target.stat().st_size
    assert os.listdir(tmp_path) == ["file"]


@WRITERS
def test_a_link_stays_and_what_it_points_to_is_replaced(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("link", "elsewhere/there"), ("chain", "link"), ("dangling", "elsewhere/new")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "elsewhere/there").write_text("old")
    write(tmp_path / "chain")
    write(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    written = (tmp_path / "elsewhere/there").read_bytes()
    assert written != b"old" and written == (tmp_path / "elsewhere/new").read_bytes()
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["new", "there"]


@WRITERS
def test_only_a_regular_file_is_replaced(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        before = {name: os.lstat(name) for name in os.listdir()}
        for name in before:
            with pytest.raises(OSError, match=f"{name} is (no regular file|a folder).*: give "):
                write(tmp_path / name)
        assert {name: os.lstat(name).st_ino for name in os.listdir()} == {
            name: found.st_ino for name, found in before.items()
        }
    with pytest.raises(FileNotFoundError, match=r"cannot write .*no/file: there is no folder .*no; make it"):
        write(tmp_path / "no" / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device node")
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this system lets nobody make a device node")
    for write in (as_text, as_tensors):
        with pytest.raises(FileExistsError, match="null is no regular file"):
            write(device)
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_full_disk_gives_a_sentence_and_keeps_what_was_there(full_disk: None, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    for write in (
        lambda: write_file(target, "x" * 1000),
        lambda: write_tensors(target, {"x": torch.zeros(1000)}),
        lambda: write_json(target, ["x" * 1000]),
    ):
        with pytest.raises(NotWritten, match=r"file could not be written \(file too large\)") as caught:
            write()
        assert caught.value.errno == 27
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    folder = tmp_path / "folder"
    with pytest.raises(NotWritten, match="folder"), replacing_folder(folder) as partial:
        (partial / "x").write_text("x" * 1000)
    assert os.listdir(tmp_path) == ["file"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another process too: the order of metadata is drawn anew in each."""
    code = (
        "import sys, torch; from rmat.storage import write_tensors; "
        "write_tensors(sys.argv[1], {'b': torch.arange(4.0), 'a': torch.zeros(2, dtype=torch.int64)}, "
        "{k: 'é\\n\\x01\"' + k for k in 'abcdef'})"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    subprocess.run([sys.executable, "-c", code, str(there)], check=True, timeout=60)
    metadata = {k: 'é\n\x01"' + k for k in "abcdef"}
    write_tensors(here, {"b": torch.arange(4.0), "a": torch.zeros(2, dtype=torch.int64)}, metadata)
    assert here.read_bytes() == there.read_bytes()
    assert torch.equal(load_file(here)["b"], torch.arange(4.0))


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_tensors(tmp_path / "x", {"one": whole[:3], "two": whole[3:], "all": whole})
    assert {name: t.tolist() for name, t in load_file(tmp_path / "x").items()} == {
        "one": [0, 1, 2], "two": [3, 4, 5], "all": [0, 1, 2, 3, 4, 5],
    }  # fmt: skip


def test_names_that_are_no_text_survive_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"out": "caf\udce9", "word": "café"})
    assert json.loads((tmp_path / "x").read_text()) == {"out": "caf\udce9", "word": "café"}


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with replacing_folder(target) as partial:
            (partial / content).write_text(content)
        assert os.listdir(tmp_path) == ["model"] and os.listdir(target) == [content]
    with pytest.raises(RuntimeError), replacing_folder(target) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == ["model"] and os.listdir(target) == ["two"]
    (tmp_path / "link").symlink_to("model")
    with (
        pytest.raises(FileExistsError, match="link is no folder of its own"),
        replacing_folder(tmp_path / "link"),
    ):
        pass


def test_a_state_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    config = ModelConfig.preset("tiny", vocab_size=20, n_layers=1, d_model=8, n_heads=2)
    state = LanguageModel(config).initial_state(batch_size=1)
    with pytest.raises(OSError, match="is a folder: give the name of a file"):
        state.save(tmp_path)
    save_state(tmp_path / "x", state, torch.zeros(20))
    assert isinstance(load_state(tmp_path / "x", config)[0], StreamState)


def test_a_folder_that_cannot_be_replaced_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").touch()
    rename, calls = os.rename, []

    def failing(left: Path, right: Path) -> None:
        calls.append(left)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(left, right)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(NotWritten), replacing_folder(tmp_path / "m") as partial:
        (partial / "new").touch()
    assert os.listdir(tmp_path) == ["m"] and os.listdir(tmp_path / "m") == ["old"]


def test_a_tokenizer_does_not_write_into_a_pipe(tmp_path: Path) -> None:
    from rmat.data.tokenizer import load_tokenizer

    os.mkfifo(tmp_path / "p")
    with pytest.raises(FileExistsError, match="p is no regular file"):
        load_tokenizer("bytes").save(tmp_path / "p")
