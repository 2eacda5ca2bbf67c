"""`--server`: single answers and captions by a model that runs elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.cli import server_choice
from idefics_cli.cli.services import Services
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Engine, EngineFactory
from idefics_cli.engine.remote.engine import RemoteEngine
from idefics_cli.server.guards import Access
from idefics_cli.server.service import ServerOptions
from tests.support.commands import Ran, run
from tests.support.fakes import FakeEngine
from tests.support.http_servers import DEMO_SPEC, FAKE_SPEC, HttpServer, StillOpen, serving
from tests.support.kernels import with_kernels
from tests.support.remote import QUICK, Scripted, scripted_server

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def demo() -> Iterator[HttpServer]:
    """Return a server of the built-in model."""
    options = ServerOptions(DEMO_SPEC, names=("demo", "idefics/demo"))
    with LocalEngine(with_kernels(DEMO_SPEC)) as engine, serving(StillOpen(engine), options) as it:
        yield it


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 11 drawn scenes, a large JPEG, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder, count=11, seed=4)
    with Image.open(min(folder.glob("*.png"))) as scene:
        scene.convert("RGB").resize((2600, 1900)).save(folder / "photo.jpg", quality=70)
    for other in folder.glob("*.jsonl"):
        other.unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def quick(spec: LoadSpec) -> EngineFactory:
    """Make engines that give a server up soon."""

    def make(*, progress: Progress | None = None) -> Engine:
        return RemoteEngine(spec, patience=QUICK, progress=progress)

    return make


def picture_in(scenes: Path) -> str:
    """Return the first picture that is whole."""
    return str(min(path for path in scenes.glob("*.png") if path.name != "broken.png"))


def here(*words: str) -> Ran:
    """Run the built-in model in this process."""
    return run(*words, "-m", "demo", services=Services(environ={}, stdin=None))


def idefics(*words: str, **variables: str) -> Ran:
    return run(*words, services=Services(environ=dict(variables), stdin=None, make_factory=quick))


# One answer


def test_ask_gets_its_answer_from_the_server(demo: HttpServer, scenes: Path) -> None:
    picture = picture_in(scenes)
    ran = idefics("ask", "How many shapes are there?", "-i", picture, "--server", demo.url)
    expected = here("ask", "How many shapes are there?", "-i", picture)
    assert (ran.code, ran.out, ran.err) == (0, expected.out, "")

    record = idefics("ask", "Hi", "--json", IDEFICS_SERVER=demo.url).record
    assert (record["model"], record["server"]) == ("demo", f"{demo.url}/v1")
    assert "device" not in record

    ran = idefics("ask", "Hi", "--server", demo.url, "-m", "idefics/demo", "--dry-run")
    assert tuple(ran) == (0, f"demo at {demo.url}/v1 answers\n", "")


def test_a_chat_in_a_pipe_gets_its_answer_from_the_server(demo: HttpServer) -> None:
    words = ["chat", "--server", demo.url, "--no-save"]
    ran = subprocess.run(
        [sys.executable, "-m", "idefics_cli", *words], input="Hi", capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == idefics("ask", "Hi", "--server", demo.url).out


def test_no_torch_is_loaded_for_a_server(demo: HttpServer, scenes: Path, tmp_path: Path) -> None:
    picture = picture_in(scenes)
    script = (
        "import sys\n"
        "from idefics_cli.cli.app import make_app\n"
        "for words in (['ask', 'Hi', '-i', sys.argv[1]], ['caption', sys.argv[1]]):\n"
        "    try:\n        make_app()([*words, '--server', sys.argv[2]])\n"
        "    except SystemExit as end:\n"
        "        print(end.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, picture, demo.url],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    ends = [line for line in done.stdout.splitlines() if line.endswith("]")]
    assert ends == ["0 []", "0 []"], done.stderr


def test_a_server_that_is_not_there_is_one_line(scenes: Path) -> None:
    with scripted_server(Scripted()) as server:
        url = server.url
    for words in (["ask", "Hi"], ["caption", str(scenes)], ["doctor"]):
        ran = idefics(*words, "--server", url)
        assert ran.code == 1
        assert f"cannot reach {url}/v1: nothing listens there" in ran.err + ran.out
        assert "is it running?" in ran.err + ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--server", "127.0.0.1:8000"], "`127.0.0.1:8000` is not the address of a server"),
        (["--server", "http://127.0.0.1:9", "--device", "cpu"], "--device and --server exclude"),
        (["--server", "http://192.0.2.1", "--offline"], "--offline is set, and http://192.0.2.1"),
    ],
)
def test_what_contradicts_a_server_is_a_usage_error(words: list[str], message: str) -> None:
    ran = idefics("ask", "Hi", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("source", ["variable", "file"])
def test_a_server_of_the_settings_is_told_and_left_out_with_local(
    source: str, demo: HttpServer, scenes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    name = "IDEFICS_SERVER" if source == "variable" else str(file)

    def with_server(url: str, *words: str) -> Ran:
        file.write_text("" if source == "variable" else f'server = "{url}"')
        environ = {"IDEFICS_CONFIG": str(file)}
        if source == "variable":
            environ["IDEFICS_SERVER"] = url
        return run(*words, services=Services(environ=environ, stdin=None))

    with scripted_server(Scripted()) as server:
        gone = server.url
    tail = f"`{name}` names the server; `--server local` runs the model here"
    for url, words, error in (
        (demo.url, ["caption", str(scenes), "--device", "cpu"], "--device and a server exclude"),
        (demo.url, ["ask", "Hi", "-m", "llava"], "has no model `llava`"),
        (gone, ["ask", "Hi"], "nothing listens there"),
        (gone, ["doctor"], "nothing listens there"),
        ("nowhere", ["ask", "Hi"], "`nowhere` is not the address of a server"),
    ):
        ran = with_server(url, *words)
        assert ran.code in (1, 2)
        assert error in ran.err
        assert tail in ran.err
    local = ["--server", "local", "-m", "demo"]
    for words in (["ask", "Hi", "--dry-run"], ["caption", picture_in(scenes), "--dry-run"]):
        shown = with_server(gone, *words, *local, "--device", "cpu")
        assert shown.code == 0, shown.err
        assert gone not in shown.out
    assert "ready: demo runs on" in with_server(gone, "doctor", *local).out


def test_local_is_also_a_value_of_the_variable_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('server = "local"')
    for variables in ({"IDEFICS_SERVER": "local"}, {"IDEFICS_CONFIG": str(file)}):
        ran = idefics("ask", "Hi", "-m", "demo", "--dry-run", **variables)
        assert ran.code == 0, ran.err
    file.write_text('server = "http://127.0.0.1:9"')
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}')
    words = ["batch", str(tmp_path / "rows.jsonl"), "-m", "demo", "--dry-run"]
    assert idefics(*words, IDEFICS_CONFIG=str(file)).code == 1
    assert idefics(*words, "--server", "local", IDEFICS_CONFIG=str(file)).code == 0


def test_a_model_that_the_server_lacks_is_told_with_those_that_it_has(demo: HttpServer) -> None:
    ran = idefics("ask", "Hi", "--server", demo.url, "-m", "llava")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: {demo.url}/v1 has no model `llava`\nhint: choose with `-m`: `demo`\n"
    )


def models(*names: str, owner: str = "library") -> Scripted:
    data = [{"id": name, "object": "model", "owned_by": owner} for name in names]
    return Scripted(json.dumps({"object": "list", "data": data}).encode())


@pytest.mark.parametrize(
    ("command", "answer", "error"),
    [
        ("ask Hi", Scripted(b"{}", status=401), "answers 401"),
        ("ask Hi", Scripted(b"{}", status=400), "answers 400"),
        ("caption PICTURE", Scripted(b"{}", status=404), "answers 404"),
        ("caption PICTURE --dry-run", Scripted(b"{}", status=401), "answers 401"),
    ],
)
def test_an_error_during_a_run_tells_where_the_address_comes_from(
    command: str, answer: Scripted, error: str, scenes: Path
) -> None:
    words = command.replace("PICTURE", picture_in(scenes)).split()
    tail = "`IDEFICS_SERVER` names the server; `--server local` runs the model here"
    with scripted_server(models("a", owner="idefics"), answer) as server:
        named = idefics(*words, IDEFICS_SERVER=server.url)
    with scripted_server(models("a", owner="idefics"), answer) as server:
        typed = idefics(*words, "--server", server.url)
    for ran in (named, typed):
        assert ran.code == 1
        assert error in ran.err
    assert named.err.count(tail) == 1
    assert named.err.rstrip().endswith(tail)
    assert "names the server" not in typed.err


def test_one_of_several_models_must_be_named() -> None:
    with scripted_server(models("a", "b")) as server:
        ran = idefics("ask", "Hi", "--server", server.url)
    assert ran.code == 1
    assert ran.err == (f"error: {server.url}/v1 has 2 models\nhint: choose with `-m`: `a`, `b`\n")


def test_the_key_comes_from_the_variable_or_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    options = ServerOptions(FAKE_SPEC, access=Access(key=KEY.encode()), names=("fake",))
    fake = FakeEngine(lambda request: "two cats")
    with serving(lambda progress=None: fake, options) as server:
        url = server.url
        shown = [
            idefics("ask", "Hi", "--server", url),
            idefics("ask", "Hi", "--server", url, IDEFICS_API_KEY="wrong-key-1234"),
            idefics("ask", "Hi", "--server", url, "--json", "--verbose", IDEFICS_API_KEY=KEY),
            idefics("ask", "Hi", "--server", url, "--api-key-file", str(tmp_path / "key")),
            idefics("doctor", "--server", url, "--json", IDEFICS_API_KEY=KEY),
            idefics("config", IDEFICS_API_KEY=KEY, IDEFICS_SERVER=url),
        ]
        assert [ran.code for ran in shown] == [1, 1, 0, 0, 0, 0]
        assert "hint: put its key into the variable IDEFICS_API_KEY" in shown[0].err
        texts = [text for ran in shown for text in (ran.out, ran.err)] + server.lines
        assert not any(KEY in text or "wrong-key" in text for text in texts)


def test_it_is_told_that_pictures_leave_this_machine_and_that_the_key_can_be_read(
    demo: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = f"note: pictures and prompts go to {demo.url}/v1\n"
    monkeypatch.setattr(server_choice, "is_local", lambda url: False)
    call = ("ask", "Hi", "--server", demo.url)
    assert idefics(*call).err == note
    warning = f"warning: the key goes to {demo.url}/v1 unencrypted; https protects it\n"
    assert idefics(*call, IDEFICS_API_KEY=KEY).err == warning + note
    assert tuple(idefics(*call, "--offline"))[:2] == (2, "")
    assert "is another machine" in idefics(*call, "--offline").err


def completion(prompt_tokens: int) -> Scripted:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
    choice = {"delta": {"content": "A"}, "finish_reason": "length"}
    return Scripted(b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n")


def test_a_server_that_does_not_see_is_found_before_the_first_picture(
    scenes: Path, tmp_path: Path
) -> None:
    picture = picture_in(scenes)
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt": "What?", "images": [picture]}))
    refused = Scripted(b'{"error": {"message": "image input is not supported"}}', 500)
    for answers in ((completion(9), completion(9)), (refused,)):
        for words in (
            ["ask", "What?", "-i", picture],
            ["caption", picture],
            ["batch", str(requests)],
        ):
            with scripted_server(models("a"), *answers) as server:
                ran = idefics(*words, "--server", server.url)
            assert (ran.code, ran.out) == (1, "")
            assert "choose another" in ran.err
    with scripted_server(models("a"), completion(73), completion(9)) as server:
        ran = idefics("ask", "What?", "-i", picture, "--server", server.url)
    assert (ran.code, ran.out) == (0, "A\n")


# Captions


def caption(scenes: Path, output: Path, *words: str, **variables: str) -> Ran:
    return idefics("caption", str(scenes), "-o", str(output), "-q", *words, **variables)


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file without the time that each took."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


@pytest.mark.parametrize("size", ["1", "8"])
def test_captions_through_our_server_equal_those_of_this_machine(
    demo: HttpServer, scenes: Path, tmp_path: Path, size: str
) -> None:
    near, there = tmp_path / "near", tmp_path / "there"
    for folder in (near, there):
        folder.mkdir()
    local = here("caption", str(scenes), "-o", str(near / "a.tsv"), "-q")
    ran = caption(scenes, there / "a.tsv", "--server", demo.url, "--batch-size", size)
    assert local.code == ran.code == 3, ran.err
    assert (there / "a.tsv").read_bytes() == (near / "a.tsv").read_bytes()
    if size == "8":
        here("caption", str(scenes), "-o", str(near / "a.jsonl"), "-q")
        caption(scenes, there / "a.jsonl", "--server", demo.url)
        assert rows(there / "a.jsonl") == rows(near / "a.jsonl")
        assert len(rows(there / "a.jsonl")) == 13
        (header,) = there.glob("*a.jsonl*json")
        found = json.loads(header.read_text())
        assert (found["server"], found["model"]) == (f"{demo.url}/v1", "demo")
        assert found["settings"]["server"] == f"{demo.url}/v1"
        assert "dtype" not in found["settings"]


def test_a_server_that_is_gone_stops_the_run_and_the_same_command_continues(
    scenes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.tsv"
    event = {"choices": [{"delta": {"content": "a picture"}, "finish_reason": "stop"}]}
    good = Scripted(b"data: " + json.dumps(event).encode() + b"\n")
    last = replace(good, stops=True)
    with scripted_server(models("fake", owner="idefics"), good, good, good, last) as server:
        port = int(server.url.rpartition(":")[2])
        ran = caption(scenes, output, "--server", server.url)
    assert ran.code == 1
    assert f"error: cannot reach {server.url}/v1: nothing listens there; no answer for" in ran.err
    assert "hint: once the server is back, the same command continues" in ran.err
    done = output.read_text().splitlines()
    assert 4 <= len([line for line in done if "a picture" in line]) < 12

    fake = FakeEngine(lambda request: "a picture")
    with serving(lambda progress=None: fake, port=port) as again:
        ran = caption(scenes, output, "--server", again.url)
    assert ran.code == 3
    lines = output.read_text().splitlines()
    assert len({line.partition("\t")[0] for line in lines}) == len(lines) == 12
    assert len(fake.requests) == 12 - len(done)


def test_a_run_tells_why_it_waits(scenes: Path, tmp_path: Path) -> None:
    event = {"choices": [{"delta": {"content": "a picture"}, "finish_reason": "stop"}]}
    good = Scripted(b"data: " + json.dumps(event).encode() + b"\n")
    busy = Scripted(b'{"error": "busy\\u001b[2J"}', 503, {"Retry-After": "1"})
    with scripted_server(models("fake", owner="idefics"), busy, good) as server:
        words = ["caption", picture_in(scenes), "-o", str(tmp_path / "a.tsv")]
        ran = idefics(*words, "--server", server.url)
    assert ran.code == 0
    note = "answers 503: busy\u241b[2J; waiting 1.0 s"
    assert f"note: {server.url}/v1 {note}\n" in ran.err


# doctor


def test_doctor_tells_what_a_server_is(demo: HttpServer) -> None:
    ran = idefics("doctor", "--server", demo.url)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"server: {demo.url}/v1"
    assert "models: demo" in lines
    assert "software: `idefics serve`" in lines
    assert "sees pictures: yes" in lines
    assert lines[-1] == f"ready: demo answers at {demo.url}/v1"
    record = idefics("doctor", "--server", demo.url, "--json").record
    assert (record["ready"], record["sees_pictures"], record["is_idefics_serve"]) == (
        True,
        "yes",
        True,
    )
    assert record["context_tokens"] > 0


def test_doctor_tells_why_a_server_is_of_no_use() -> None:
    with scripted_server(models("a", "b")) as server:
        ran = idefics("doctor", "--server", server.url)
        assert ran.code == 1
        assert f"not ready: {server.url}/v1 has 2 models (choose with `-m`: `a`, `b`)" in ran.out
    with scripted_server(models("a"), completion(9), completion(9)) as server:
        ran = idefics("doctor", "--server", server.url)
        assert ran.code == 1
        assert "not ready: a does not see pictures" in ran.out
