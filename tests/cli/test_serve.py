"""The command as a user runs it: a process, a socket, signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from rmat.serving.auth import ENVIRONMENT
from tests.cli.conftest import Rmat, in_new_process

CHAT = {"messages": [{"role": "user", "content": "hello"}], "session": "talk", "seed": 1}


@contextmanager
def serving(
    model: Path, folder: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running process, and its address."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rmat",
            "serve",
            str(model),
            "--port",
            "0",
            "--sessions",
            str(folder),
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line + process.stderr.read()
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_from_start_to_signal(run_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """It says how to try it, answers, ends with status 0, and the next one goes on in its sessions."""
    with serving(run_folder, tmp_path) as (process, base):
        assert process.stdout is not None
        hint = process.stdout.readline()
        body = re.search(r"-d '(.*)'", hint)
        assert body and f"{base}/v1/completions" in hint
        answer = httpx.post(f"{base}/v1/completions", json=json.loads(body.group(1)), timeout=60)
        assert answer.status_code == 200 and answer.json()["model"] == "run"
        assert httpx.get(f"{base}/v1/models", headers={"host": "evil.example"}).status_code == 400
        first = httpx.post(f"{base}/v1/chat/completions", json={**CHAT, "max_tokens": 5}, timeout=60).json()
        process.send_signal(number)
        status, out, err = ended(process)
        assert (status, out, err) == (0, "stopped\n", "")
    with serving(run_folder, tmp_path) as (process, base):
        history = httpx.get(f"{base}/v1/sessions/talk").json()["history"]
        assert history[-1]["content"] == first["choices"][0]["message"]["content"]


def test_an_answer_that_is_being_written_is_kept(endless: Path, tmp_path: Path) -> None:
    body = {"prompt": "the text", "max_tokens": 4000, "stream": True, "session": "long"}
    with serving(endless, tmp_path, "--grace", "0.2") as (process, base):
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.terminate()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert rest[-1]["choices"][0]["finish_detail"] == "stopped"
        assert ended(process)[0] == 0
    assert (tmp_path / "public" / "long.safetensors").is_file()


def test_keys_from_a_file_and_the_environment(run_folder: Path, tmp_path: Path, rmat: Rmat) -> None:
    hashed = in_new_process(["serve", "--hash-key"], cwd=tmp_path, stdin=b"first-key\n").out
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", hashed)
    (tmp_path / "keys").write_text(hashed)
    options = ("--api-keys", str(tmp_path / "keys"), "--host", "0.0.0.0")
    with serving(run_folder, tmp_path / "s", *options, **{ENVIRONMENT: "second-key"}) as (_, base):
        base = base.replace("0.0.0.0", "127.0.0.1")
        statuses = [
            httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("first-key", "second-key", "third-key")
        ]
        assert statuses == [200, 200, 401]


def test_a_port_in_use_is_one_sentence(run_folder: Path, rmat: Rmat) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = rmat("serve", run_folder, "--port", port).refused()
    assert f"port {port}" in sentence and "--port" in sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "give API keys"),
        (["--host", "no.such.host.invalid"], "give API keys"),
        (["--host", "no.such.host.invalid", "--allow-anonymous"], "no address"),
        (["--port", "70000"], "port 70000"),
        (["--max-seconds", "0"], "max_seconds is 0"),
        (["--max-rows", "0", "--port", "0"], "max_rows is 0"),
        (["--grace", "-1"], "--grace"),
        (["--api-keys", "no-such-file"], "no-such-file"),
        (["--sessions", __file__], "test_serve.py"),
        (["--prot", "5"], "did you mean '--port'"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    rmat: Rmat, run_folder: Path, options: list[str], said: str
) -> None:
    assert said in rmat("serve", run_folder, *options).refused()


def test_a_model_must_be_given_and_be_there(rmat: Rmat, tmp_path: Path) -> None:
    assert "no MODEL" in rmat("serve").refused()
    assert "no model at" in rmat("serve", tmp_path / "none", "--port", "0").refused()


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_one_sentence(
    rmat: Rmat, run_folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rmat("serve", run_folder, "--port", "0").refused()
    assert package in sentence and "pip install 'rmat[serve]'" in sentence
