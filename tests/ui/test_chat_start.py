"""The start of `idefics chat` at the keyboard: checks, and the conversation that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.hardware.machine import Machine
from idefics_cli.server.service import ServerOptions
from tests.support import commands
from tests.support.commands import Ran, World, run
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.http_servers import FAKE_SPEC, serving


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines to type, each removed when it is read; Ctrl-D follows."""
    lines: list[str] = []

    def read(prompt: str = "") -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return lines


def chat(world: World, *arguments: str) -> Ran:
    """Run `idefics chat` on a terminal without drawing."""
    return run("chat", "--accessible", *arguments, services=world.services, terminal=True)


def world(home: Path, *answers: str, model: str = "smolvlm-256m") -> World:
    return World(FakeEngine(*answers), model=model, stdin=commands.Terminal(), HOME=str(home))


def kept(home: Path) -> SessionStore:
    return SessionStore(home / ".local/share/idefics")


def test_answers_go_to_stdout_and_all_else_to_stderr(tmp_path: Path, person: list[str]) -> None:
    person += ["What?", "/help drop", "And?"]
    ran = chat(world(tmp_path, "A cat.", "A dog."))
    assert (ran.code, ran.out) == (0, "A cat.\nA dog.\n")
    assert "/help lists the commands, Ctrl-D leaves" in ran.err
    assert "/drop N: " in ran.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--json",), "--json needs a question that is piped in"),
        (("-i", "-"), "`-i -` needs a picture on stdin, which is the keyboard here"),
        (("-c", "--session", "x"), "--continue and --session exclude each other"),
    ],
)
def test_what_makes_no_sense_at_a_keyboard_is_refused(
    arguments: tuple[str, ...], error: str, tmp_path: Path
) -> None:
    here = world(tmp_path)
    ran = chat(here, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert error in ran.err
    assert here.specs == []


@pytest.mark.parametrize("arguments", [("-c",), ("--session", "x")])
def test_a_pipe_goes_on_with_no_conversation(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ran = run("chat", *arguments, services=World(FakeEngine(), HOME=str(tmp_path)).services)
    assert ran.code == 2
    assert "needs a keyboard\nhint: leave it out, and the question on stdin is answered" in ran.err


def test_a_base_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    here = world(tmp_path, model="idefics2-8b-base")
    ran = chat(here)
    assert ran.code == 2
    assert "is a base model: it completes texts and does not chat" in ran.err
    assert here.specs == []


def test_a_missing_picture_stops_before_the_model_is_loaded(tmp_path: Path) -> None:
    here = world(tmp_path)
    ran = chat(here, "-i", str(tmp_path / "no.png"))
    assert (ran.code, here.specs) == (1, [])
    assert "no such file" in ran.err


def test_pictures_of_the_command_line_go_with_the_first_text(
    tmp_path: Path, person: list[str]
) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    person += ["What?", "/images"]
    here = world(tmp_path, "A cat.")
    ran = chat(here, "-i", str(tmp_path / "a.png"))
    shown = " ".join(ran.err.split())
    assert "8x6 landscape, goes with your next message" in shown
    assert "8x6 landscape, turn 1, 10 tokens" in shown
    assert len(here.engine.requests[0].attachments) == 1


@pytest.mark.parametrize("again", [("-c",), ("--session", "trip")])
def test_a_conversation_goes_on_with_its_model(
    again: tuple[str, ...], tmp_path: Path, person: list[str]
) -> None:
    person += ["What?"]
    chat(world(tmp_path, "A cat."), "--session", "trip", "-m", "smolvlm-2.2b")
    person += ["And?"]
    here = world(tmp_path, "A dog.")
    ran = chat(here, *again)
    assert "continuing `trip`: 1 question, 0 pictures\n> What?\nA cat.\n" in ran.err
    assert [m.text for m in here.engine.requests[0].messages] == ["What?", "A cat.", "And?"]
    assert here.looked_up == ["smolvlm-2.2b"]


def test_there_is_nothing_to_go_on_with_at_first(tmp_path: Path) -> None:
    ran = chat(world(tmp_path), "-c")
    assert (ran.code, ran.out) == (1, "")
    assert "there are no sessions yet" in ran.err


def test_a_model_that_cannot_be_loaded_ends_the_chat_with_its_code(
    tmp_path: Path, person: list[str]
) -> None:
    error = MemoryLimitError("out of memory", hint="a smaller model")
    here = World(FakeEngine(), stdin=commands.Terminal(), load_error=error, HOME=str(tmp_path))
    person += ["What?", "And?"]
    ran = chat(here)
    assert (ran.code, ran.out) == (1, "")
    # Without colours, because a screen reader may read it.
    assert ran.err.endswith("\nerror: out of memory\nhint: a smaller model\n")
    assert kept(tmp_path).list() == []


def test_a_name_that_no_session_has_is_told_to_be_new(tmp_path: Path, person: list[str]) -> None:
    person += ["What?"]
    ran = chat(world(tmp_path, "A cat."), "--session", "trip")
    assert "note: there is no session `trip` yet; this one gets the name\n" in ran.err
    again = chat(world(tmp_path), "--session", "trip")
    assert "there is no session" not in again.err


def test_without_saving_nothing_is_written(tmp_path: Path, person: list[str]) -> None:
    person += ["What?"]
    ran = chat(world(tmp_path, "A cat."), "--no-save")
    assert ran.out == "A cat.\n"
    assert list(tmp_path.rglob(".local")) == []


def test_a_conversation_can_go_on_without_saving_what_follows(
    tmp_path: Path, person: list[str]
) -> None:
    person += ["What?"]
    chat(world(tmp_path, "A cat."))
    person += ["And?"]
    here = world(tmp_path, "A dog.")
    chat(here, "-c", "--no-save")
    assert len(here.engine.requests[0].messages) == 3
    (info,) = kept(tmp_path).list()
    assert info.turns == 1


def test_a_system_text_and_settings_reach_the_model(tmp_path: Path, person: list[str]) -> None:
    person += ["What?"]
    here = world(tmp_path, "A cat.")
    chat(here, "-s", "Be brief.", "--temperature", "0.5")
    (request,) = here.engine.requests
    assert [m.role for m in request.messages] == ["system", "user"]
    assert request.sampling.temperature == 0.5


@pytest.mark.parametrize("is_cached", [True, False])
def test_another_model_is_planned_when_the_memory_of_the_former_is_free(
    is_cached: bool, tmp_path: Path, person: list[str]
) -> None:
    person += ["What?", "/model smolvlm-2.2b", "And?"]
    stdin = commands.Terminal(b"y\n" * 2)
    here = World(FakeEngine("A.", "B."), is_cached=is_cached, stdin=stdin, HOME=str(tmp_path))
    was_closed: list[bool] = []

    def probe() -> Machine:
        was_closed.append(here.engine.is_closed)
        return here.services.probe()

    services = replace(here.services, probe=probe)
    ran = run("chat", "--accessible", services=services, terminal=True)
    assert (ran.out, was_closed) == ("A.\nB.\n", [False, True])


def test_a_session_goes_on_with_its_adapter(tmp_path: Path, person: list[str]) -> None:
    adapter = tmp_path / "style"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    # A file without matrices: the length of its header, and the header.
    (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    name = f"smolvlm-256m + {adapter}"
    for arguments, questions in (
        (("--adapter", str(adapter)), ["What?"]),
        (("-c",), ["And?", "/model smolvlm-256m", "So?", f"/model {name}", "Well?"]),
        (("-c",), ["Well?"]),
    ):
        here = world(tmp_path, *("A cat.", "Two.", "Three."))
        if arguments[0] == "--adapter":
            arguments = ("-m", "smolvlm-256m", *arguments)
        person += questions
        ran = chat(here, *arguments)
        assert ran.code == 0
        used = [spec.adapter and spec.adapter.name for spec in here.specs]
        expected = [str(adapter)] if len(questions) == 1 else [str(adapter), None, str(adapter)]
        assert used == expected
        assert f"{name}: /help lists the commands" in " ".join(ran.err.split())
    assert kept(tmp_path).list()[0].model == name


def test_a_session_goes_on_at_its_server(tmp_path: Path, person: list[str]) -> None:
    options = ServerOptions(FAKE_SPEC, names=("smolvlm-256m",))
    with serving(EngineOf(FakeEngine("A cat.")), options) as server:
        url = f"{server.url}/v1"
        for arguments, expected in (
            (("--server", server.url), url),
            (("-c",), url),
            (("-c", "--server", "local"), None),
            (("-c", "--server", server.url), url),
            (("-c", "-m", "smolvlm-256m"), None),
        ):
            here = world(tmp_path, "A cat.")
            person += ["What?"]
            ran = chat(here, *arguments)
            assert ran.code == 0, ran.err
            assert [spec.server and spec.server.url for spec in here.specs] == [expected]
            name = "smolvlm-256m" if expected is None else f"smolvlm-256m at {url}"
            assert kept(tmp_path).list()[0].model == name


def test_another_model_of_a_server_is_kept_with_the_server(
    tmp_path: Path, person: list[str]
) -> None:
    options = ServerOptions(FAKE_SPEC, names=("one", "two"))
    with serving(EngineOf(FakeEngine("A cat.")), options) as server:
        url = f"{server.url}/v1"
        for arguments, questions in (
            (("--server", server.url, "-m", "one"), ["What?", "/model two", "And?"]),
            (("-c",), ["So?", "/model two at " + url, "Well?"]),
        ):
            here = world(tmp_path, "A cat.", "Two.")
            person += questions
            ran = chat(here, *arguments)
            assert ran.code == 0, ran.err
            assert {spec.server and spec.server.url for spec in here.specs} == {url}
            assert f"the model is two at {url}" in " ".join(ran.err.split())
            assert kept(tmp_path).list()[0].model == f"two at {url}"
