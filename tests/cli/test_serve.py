"""The command as a user runs it: a process, a socket, signals."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from rmat.serving.auth import ENVIRONMENT
from rmat.serving.server import Server
from tests.cli.conftest import Rmat, in_new_process
from tests.makers.servers import signals_as_before

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


def test_servers_from_start_to_signal(run_folder: Path, tmp_path: Path) -> None:
    """One says how to try it, answers, ends with status 0, and the next one goes on in its sessions."""
    with serving(run_folder, tmp_path) as (process, base):
        assert process.stdout is not None
        hint = process.stdout.readline()
        body = re.search(r"-d '(.*)'", hint)
        assert body and f"{base}/v1/completions" in hint
        answer = httpx.post(f"{base}/v1/completions", json=json.loads(body.group(1)), timeout=60)
        assert answer.status_code == 200 and answer.json()["model"] == "run"
        assert httpx.get(f"{base}/v1/models", headers={"host": "evil.example"}).status_code == 400
        first = httpx.post(f"{base}/v1/chat/completions", json={**CHAT, "max_tokens": 5}, timeout=60).json()
        process.send_signal(signal.SIGTERM)
        status, out, err = ended(process)
        assert (status, out) == (0, "stopped\n")
        stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} 127\.0\.0\.1"
        lines = [re.fullmatch(rf"{stamp} (\w+ \S+ \d+) [\d.]+ s \w+", line) for line in err.splitlines()]
        assert [line and line.group(1) for line in lines] == [
            "POST /v1/completions 200",
            "GET /v1/models 400",
            "POST /v1/chat/completions 200",
        ]
    with serving(run_folder, tmp_path, "--no-access-log") as (process, base):
        history = httpx.get(f"{base}/v1/sessions/talk").json()["history"]
        assert history[-1]["content"] == first["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
        assert (status, out[-8:], err) == (0, "stopped\n", "")


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


def test_keys_from_a_file_and_the_environment(run_folder: Path, tmp_path: Path) -> None:
    hashed = in_new_process(["serve", "--hash-key"], cwd=tmp_path, stdin=b"first-key\n").out
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", hashed)
    (tmp_path / "keys").write_text(hashed)
    friend = "https://friend.example"
    options = ("--api-keys", str(tmp_path / "keys"), "--host", "0.0.0.0", "--cors-origin", f"{friend}/")
    with serving(run_folder, tmp_path / "s", *options, **{ENVIRONMENT: "second-key"}) as (_, base):
        base = base.replace("0.0.0.0", "127.0.0.1")
        answers = [
            httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {key}", "origin": friend})
            for key in ("first-key", "second-key", "third-key")
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 401]
        # An origin may end with a slash.
        assert {answer.headers["access-control-allow-origin"] for answer in answers} == {friend}


@pytest.mark.parametrize("sent", [b"", b"\n", b"  \n"])
def test_an_empty_key_is_not_hashed(rmat: Rmat, tmp_path: Path, sent: bytes) -> None:
    done = in_new_process(["serve", "--hash-key"], cwd=tmp_path, stdin=sent)
    assert (done.status, done.out) == (2, "") and "empty" in done.err


def test_what_is_dangerous_is_warned_of(
    run_folder: Path, tmp_path: Path, rmat: Rmat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a server that is told to stop at once."""
    serve, stop = Server.serve_on, functools.partial(signal.raise_signal, signal.SIGTERM)
    monkeypatch.setattr(Server, "serve_on", lambda server, listening, _: serve(server, listening, stop))
    keys = tmp_path / "keys"
    keys.write_text("some-key\n")
    for mode, options, said in (
        (0o644, ("--api-keys", keys), [f"can read {keys}"]),
        (0o600, ("--api-keys", keys, "--cors-origin", "*"), []),
        (0o600, ("--cors-origin", "*"), ["--cors-origin '*' without API keys"]),
    ):
        keys.chmod(mode)
        with signals_as_before():
            outcome = rmat(
                "serve", run_folder, "--port", "0", "--sessions", tmp_path / "s", "--no-access-log", *options
            )
        warnings = outcome.err.splitlines()
        assert (outcome.status, outcome.out) == (0, "stopped\n")
        assert len(warnings) == len(said) and all(map(str.__contains__, warnings, said)), warnings


@pytest.mark.slow  # takes up all descriptors of a process
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files there")
def test_at_the_limit_of_open_files_it_still_answers(run_folder: Path, tmp_path: Path) -> None:
    """More connections than files, all silent: health is told, and the log stays short."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))  # what the server inherits
    try:
        server = serving(run_folder, tmp_path, "--no-access-log")
        process, base = server.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with ExitStack() as clients:
        clients.push(server.__exit__)
        host, port = base.removeprefix("http://").split(":")
        for number in range(300):
            clients.enter_context(socket.create_connection((host, int(port)), 30))
            if number % 50 == 49:
                assert httpx.get(f"{base}/health", timeout=30).status_code == 200
        process.terminate()
        status, _, err = ended(process)
    assert status == 0 and len(err) < 2000


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
        (["--max-seconds", "0"], "--max-seconds=0"),
        (["--max-seconds", "inf"], "--max-seconds=inf"),
        (["--max-rows", "0"], "--max-rows=0"),
        (["--max-body-mb", "inf"], "--max-body-mb=inf"),
        (["--max-body-mb", "1e308"], "--max-body-mb=1e+308"),
        (["--session-count", "-1"], "--session-count=-1"),
        (["--session-days", "nan"], "--session-days=nan"),
        (["--session-mb", "-1"], "--session-mb=-1"),
        (["--cache-mb", "-1"], "--cache-mb=-1"),
        (["--grace", "nan"], "--grace=nan"),
        (["--grace", "-1"], "--grace=-1"),
        (["--cors-origin", "example.org"], "--cors-origin='example.org'"),
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


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "llguidance"])
def test_a_missing_package_is_one_sentence(
    rmat: Rmat, run_folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rmat("serve", run_folder, "--port", "0").refused()
    assert package in sentence and "pip install 'rmat[serve]'" in sentence
