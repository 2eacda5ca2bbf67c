"""`idefics serve`: what it refuses to start with, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.errors import IdeficsError, ModelError
from idefics_cli.core.types import ImageLimits
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.server.run import open_socket
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.http_servers import CHAT, chat, events, read

KEY = "correct-horse-battery"
# A reply of hundreds of tokens, whatever the model would say.
LONG = {"structured_outputs": {"regex": "[a-z]{300}"}, "max_tokens": 300, "stream": True}

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def serve(*arguments: str, **variables: str) -> Ran:
    return run("serve", *arguments, services=World(FakeEngine(), environ=variables).services)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "box.example"])
def test_other_machines_may_not_ask_without_a_key(host: str) -> None:
    ran = serve("--host", host)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"error: `--host {host}` lets other machines ask, and there is no key\n"
        "hint: `openssl rand -hex 24 >key && chmod 600 key` makes one for `--api-key-file key`\n"
    )


@pytest.mark.parametrize("key", ["tiny!", "with a blank", "ключ-ключ", "line\nfeed-line"])
def test_a_key_must_be_plain(key: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)

    for ran in (
        serve("--host", "0.0.0.0", IDEFICS_API_KEY=key),
        serve("--api-key-file", str(tmp_path / "key")),
    ):
        assert (ran.code, ran.out) == (2, "")
        assert "is not usable: it must be one word of 8 to 4096 ASCII characters" in ran.err
        assert key not in ran.err


def test_a_file_without_a_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(mode=0o600)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    for name in ("missing", "empty", "binary", "."):
        ran = serve("--api-key-file", str(tmp_path / name))
        assert (ran.code, ran.out) == (1, ""), name
        assert ran.err.startswith("error: "), name


def test_a_key_file_without_an_end_is_an_error() -> None:
    ran = serve("--api-key-file", "/dev/zero")

    assert (ran.code, ran.out) == (2, "")
    assert "the key in `/dev/zero` is not usable" in ran.err


def test_of_two_servers_that_start_together_the_second_is_told() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(IdeficsError, match=f"another program has the port {port}"):
            open_socket("127.0.0.1", port)


def test_a_port_that_is_taken_is_found_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world = World(FakeEngine())
        ran = run("serve", "--port", str(port), services=world.services)

    assert (ran.code, ran.out) == (1, "")
    assert f"another program has the port {port}" in ran.err
    assert "--port 0" in ran.err
    assert world.looked_up == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "70000"), "--port must be from 0 to 65535"),
        (("--host", "no-such-host.invalid"), "lets other machines ask"),
        (("--keep-alive", "soon"), "--keep-alive must be a time such as 90s, 5m or 2h"),
        (("--origin", "example.com"), "`--origin example.com` is not an origin"),
        (("--origin", "https://a.example/"), "is not an origin"),
        (("--origin", "https://a.example/chat"), "is not an origin"),
        (("--origin", "*"), "`--origin *` is not an origin"),
        (("--allowed-host", "http://box"), "`--allowed-host http://box` is not the name of a host"),
        (("--allowed-host", "box,nas:8000"), "`--allowed-host nas:8000` is not the name of a host"),
        (("--image-urls", "http://x"), "--image-urls must be public, off or hosts"),
        (("--queue", "-1"), "--queue must be from 0 to 10000"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    ran = serve(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_names_the_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package or name.startswith("idefics_cli.server"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    ran = serve()

    assert (ran.code, ran.out) == (2, "")
    assert "needs the package" in ran.err
    assert "hint: pip install 'idefics-cli[serve]'\n" in ran.err


def test_a_model_that_cannot_be_loaded_ends_the_command() -> None:
    world = World(FakeEngine(), load_error=ModelError("the weights are broken", hint="delete them"))

    ran = run("serve", "--port", "0", services=world.services)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("error: the weights are broken\nhint: delete them\n")


def limits_of(*arguments: str) -> ImageLimits:
    """Return the limits of pictures with which the command loads its model."""
    world = World(FakeEngine(), load_error=ModelError("no"))
    run("serve", "--port", "0", *arguments, services=world.services)
    return world.specs[0].limits


def test_no_option_lets_requests_read_files() -> None:
    usual = limits_of()
    assert usual.sources == {"data", "web"}
    assert usual.addresses == "public"
    assert (usual.max_pixels, usual.max_bytes) == (50_000_000, 20_000_000)
    assert (usual.timeout_seconds, usual.download_seconds) == (10, 10)
    slow = limits_of("--timeout-seconds", "60")
    assert (slow.timeout_seconds, slow.download_seconds) == (60, 60)

    assert limits_of("--image-urls", "off").sources == {"data"}
    assert limits_of("--offline").sources == {"data"}
    named = limits_of("--image-urls", "NAS.local:81,box")
    assert named.sources == {"data", "web"}
    assert named.addresses == frozenset({"nas.local:81", "box"})
    assert limits_of("--max-pixels", "9").max_pixels == 9
    assert limits_of("--max-bytes", "300000000").max_bytes == 300_000_000


def test_its_help_has_its_own_limits_of_pictures() -> None:
    words = " ".join(run("serve", "--help").out.split())

    for text in (
        "(default: 50000000)",
        "(default: 20000000)",
        "of a whole download. (default: 10)",
    ):
        assert text in words


def test_an_origin_is_compared_as_browsers_write_it(warm_python: tuple[str, ...]) -> None:
    given = "HTTPS://Chat.Example:443,http://box:80,http://nas:8080"
    with started(warm_python, "--origin", given) as (_, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        for origin, status in (
            ("https://chat.example", 200),
            ("http://box", 200),
            ("http://nas:8080", 200),
            ("http://nas", 403),
        ):
            connection.request("GET", "/health", headers={"Origin": origin})
            response = connection.getresponse()
            response.read()
            assert (origin, response.status) == (origin, status)
        connection.close()


def test_a_dry_run_shows_the_plan_and_listens_nowhere() -> None:
    ran = serve("--dry-run", "--port", "1")

    assert ran.code == 0
    assert "smolvlm-256m" in ran.out


@contextmanager
def started(
    python: tuple[str, ...],
    *arguments: str,
    stderr: int = subprocess.PIPE,
    pipe_bytes: int = -1,
    **variables: str,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server of the built-in model, and return its process and its port.

    Args:
        python: The start of the command, in place of `python`.
        arguments: Options of the server.
        stderr: Its standard error.
        pipe_bytes: What its pipes hold, on Linux; -1 for the usual size.
        variables: More variables of its environment.
    """
    model = () if "-m" in arguments else ("-m", "demo")
    process = subprocess.Popen(
        [*python, "-m", "idefics_cli", "serve", *model, "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **variables},
        pipesize=pipe_bytes,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            yield process, json.loads(line)["port"]
        finally:
            process.kill()


def begun(port: int, count: int) -> list[tuple[HTTPConnection, Any]]:
    """Begin long replies, and return their connections when each has begun to speak."""
    found = []
    for _ in range(count):
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(chat("Hi", **LONG)).encode()
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        found.append(connection)
    return [(connection, connection.getresponse()) for connection in found]


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for the end, and return stderr, which must have no traceback."""
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(30)
    assert "Traceback" not in err
    return err


@posix
def test_sigterm_lets_running_replies_end(warm_python: tuple[str, ...]) -> None:
    with started(warm_python) as (process, port):
        replies = begun(port, 4)
        process.send_signal(signal.SIGTERM)
        found = [events(read(response)[2]) for _, response in replies]
        err = ended(process)

    for one in found:
        assert one[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert process.returncode == 0
    assert "shutting down" in err
    for connection, _ in replies:
        connection.close()


@posix
def test_after_the_drain_replies_end_with_an_error_event(warm_python: tuple[str, ...]) -> None:
    with started(warm_python, "--drain-seconds", "0") as (process, port):
        replies = begun(port, 20)  # more than the model answers at a time
        process.send_signal(signal.SIGTERM)
        found = [read(response) for _, response in replies]
        ended(process)

    codes = []
    for status, _, answer in found:
        if status == 200:
            last = events(answer)[-1]
            codes.append(last["error"]["code"] if "error" in last else "ended")
        else:
            assert status == 503
            codes.append(answer["error"]["code"])
    assert "shutting_down" in codes
    assert set(codes) <= {"shutting_down", "ended"}
    assert process.returncode == 0
    for connection, _ in replies:
        connection.close()


@posix
def test_the_second_interrupt_ends_at_once(warm_python: tuple[str, ...]) -> None:
    with started(warm_python) as (process, port):
        replies = begun(port, 2)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        for connection, response in replies:
            answer = read(response)[2]
            assert answer.endswith("data: [DONE]\n\n")
            connection.close()
        ended(process)

    assert process.returncode == 130


@posix
def test_the_key_is_asked_for_and_shown_nowhere(
    warm_python: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "key").chmod(0o644)
    arguments = ("--host", "127.0.0.1", "--api-key-file", str(tmp_path / "key"), "--verbose")
    with started(warm_python, *arguments) as (process, port):
        statuses = []
        for given in ("", f"Bearer {KEY}", f"Bearer {KEY}x"):
            headers = {"Authorization": given} if given else {}
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", f"/v1/models?key={KEY}", headers=headers)
            statuses.append(read(connection.getresponse())[0])
            connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        err, out = ended(process), process.stdout.read()

    assert statuses == [401, 200, 401]
    assert "other users can read the key: `chmod 600" in err
    assert KEY not in err + out
    for command in (("config",), ("doctor", "--json"), ("config", "--json")):
        ran = run(*command, services=World(FakeEngine(), IDEFICS_API_KEY=KEY).services)
        assert KEY not in ran.out + ran.err
        assert "IDEFICS_API_KEY" not in ran.err


@posix
def test_a_model_in_a_folder_is_named_without_the_path_to_it(
    warm_python: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(demo_folder(), tmp_path / "own-model")
    with started(warm_python, "-m", str(tmp_path / "own-model")) as (process, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/models")
        answer = read(connection.getresponse())[2]
        connection.close()
        process.send_signal(signal.SIGTERM)
        err = ended(process)

    assert answer["data"][0]["id"] == answer["data"][0]["root"] == "own-model"
    assert str(tmp_path) not in str(answer) + err


@posix
def test_a_reader_of_the_log_that_stops_does_not_stop_the_answers(
    warm_python: tuple[str, ...],
) -> None:
    with started(warm_python, pipe_bytes=4096) as (process, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        # More lines than the pipe holds; only Linux can make it small.
        for number in range(200 if sys.platform == "linux" else 1500):
            connection.request("GET", "/health", headers={"X-Request-Id": f"{number:060}"})
            assert read(connection.getresponse())[0] == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        ended(process)

    assert process.returncode == 0


@posix
@pytest.mark.parametrize("verbose", [False, True])
def test_lines_on_a_terminal_have_no_id_unless_verbose(
    verbose: bool, warm_python: tuple[str, ...]
) -> None:
    reader, terminal = os.openpty()
    with started(warm_python, *["-v"][:verbose], stderr=terminal) as (process, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health", headers={"X-Request-Id": "mine-1.2"})
        assert read(connection.getresponse())[0] == 200
        connection.close()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    os.close(terminal)
    shown = os.read(reader, 65536).decode()
    os.close(reader)

    assert " health 200 0." in shown
    assert ("mine-1.2" in shown) is verbose


@posix
def test_lines_at_the_start_say_where_and_how(warm_python: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*warm_python, "-m", "idefics_cli", "serve", "-m", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "IDEFICS_API_KEY": KEY},
    )
    with process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(6)]
        process.send_signal(signal.SIGTERM)
        ended(process)
    url = lines[1].split()[3].rstrip(",")
    assert url.startswith("http://127.0.0.1:")
    assert lines == [
        "loading demo\n",
        f"demo answers at {url}, until Ctrl-C\n",
        f"try it: curl {url}/chat/completions \\\n",
        "  -H 'Content-Type: application/json' \\\n",
        '  -H "Authorization: Bearer $IDEFICS_API_KEY" \\\n',
        """  -d '{"messages": [{"role": "user", "content": "Hello"}]}'\n""",
    ]
    assert process.returncode == 0
