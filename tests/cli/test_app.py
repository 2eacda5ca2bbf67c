"""The command as a whole: help, versions, wrong usage, broken pipes, and bugs."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

import idefics_cli
from idefics_cli.cli import invocation
from idefics_cli.cli.app import make_app
from idefics_cli.cli.help.groups import HelpCommand, HelpGroup
from idefics_cli.cli.services import Services
from idefics_cli.config.settings import setting_table
from idefics_cli.models.hub.facts import ModelFacts
from tests.support.commands import run

COMMANDS = (
    "ask",
    "chat",
    "caption",
    "collect",
    "batch",
    "serve",
    "sessions",
    "models",
    "doctor",
    "bench",
    "demo",
    "config",
)


def test_without_arguments_there_is_an_overview_with_commands_that_exist() -> None:
    ran = run()
    assert (ran.code, ran.err) == (0, "")
    shown = re.findall(r"^ +idefics (\w+)", ran.out, re.MULTILINE)
    assert len(shown) >= 3
    assert set(shown) <= set(COMMANDS)
    assert all(len(line) <= 80 for line in ran.out.splitlines())


def test_help_lists_every_command_however_it_is_asked_for() -> None:
    asked = run("--help")
    assert (asked.code, asked.err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\w", asked.out, re.MULTILINE)
    assert run("help") == asked
    assert run("help", "models", "pull") == run("models", "pull", "--help")


def test_the_short_flag_for_help_works_everywhere() -> None:
    assert run("ask", "-h") == run("ask", "--help")


def test_version_is_that_of_the_package() -> None:
    assert tuple(run("--version")) == (0, f"idefics {idefics_cli.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("aks",), "there is no command `aks`", "did you mean `idefics ask`?"),
        (("zzzz",), "no such command 'zzzz'", "`idefics --help` shows the usage"),
        (("--nope",), "no such option: --nope", "`idefics --help` shows the usage"),
        (
            ("ask", "--temperatur", "1"),
            "no such option: --temperatur",
            "did you mean --temperature?",
        ),
        (
            ("ask", "--seed"),
            "option '--seed' requires an argument",
            "`idefics ask --help` shows the usage",
        ),
        (
            ("ask", "what", "is", "it"),
            "unexpected extra arguments `is it`",
            "put the prompt into quotes, and `-i` before each picture",
        ),
        (("demo",), "missing argument 'DIR'", "`idefics demo --help` shows the usage"),
        (("config", "pat"), "there is no command `pat`", "did you mean `idefics config path`?"),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_2(
    arguments: tuple[str, ...], error: str, hint: str
) -> None:
    assert tuple(run(*arguments)) == (2, "", f"error: {error}\nhint: {hint}\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
@pytest.mark.parametrize("line", ["--help", "--version", "ask --help", "config path", "config"])
def test_a_full_disk_is_one_line_whoever_writes(line: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "idefics_cli", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ran.stderr.decode() == f"error: cannot write the output: {os.strerror(errno.ENOSPC)}\n"
    assert ran.returncode == 1


def test_control_characters_in_an_argument_do_not_reach_the_terminal() -> None:
    ran = run("ask\x1b[2J\n", terminal=True)
    assert (ran.code, ran.out) == (2, "")
    assert "\x1b[2J" not in ran.err
    assert "[2J" in ran.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--temperature", "hot"), "--temperature must be a number, not `hot`"),
        (("--top-k", "1.5"), "--top-k must be a whole number, not `1.5`"),
        (("--device", "gpu"), "--device must be auto, cpu, mps, cuda or cuda:N, not `gpu`"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be 1 or more, not `0`"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_flag(
    arguments: tuple[str, ...], error: str
) -> None:
    ran = run("ask", "x", *arguments, services=Services(environ={}, stdin=None))
    assert tuple(ran) == (2, "", f"error: {error}\n")


@pytest.mark.parametrize("arguments", [("--quiet", "--verbose"), ("-q", "-v")])
def test_quiet_and_verbose_exclude_each_other(arguments: tuple[str, ...]) -> None:
    ran = run("ask", "x", *arguments, services=Services(environ={}, stdin=None))
    assert tuple(ran) == (2, "", "error: --quiet and --verbose exclude each other\n")


def test_a_wrong_configuration_stops_every_command_that_reads_it() -> None:
    services = Services(environ={"IDEFICS_TOP_P": "x"}, stdin=None)
    for arguments in (("ask", "x"), ("chat",), ("config",), ("demo", "/x")):
        ran = run(*arguments, services=services)
        assert tuple(ran) == (2, "", "error: variable IDEFICS_TOP_P must be a number, not `x`\n")


def test_a_thread_that_is_at_work_at_the_end_does_not_change_the_exit(
    warm_python: tuple[str, ...],
) -> None:
    # Python stops a daemon thread by force; inside torch this ends the process with SIGABRT.
    program = textwrap.dedent(
        """
        import sys, threading, torch
        from idefics_cli.cli.app import main

        def work():
            picture = torch.zeros(1, 3, 200, 200)
            while True:
                torch.nn.functional.interpolate(picture, size=(300, 300)).sum().item()
                begun.set()

        begun = threading.Event()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        sys.argv = ["idefics", "--version"]
        main()
        """
    )
    ran = subprocess.run([*warm_python, "-c", program], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"idefics ")


def test_the_end_runs_exit_functions_but_does_not_take_libraries_down() -> None:
    # As triton, which prints "leaked instances" while Python frees its modules.
    program = textwrap.dedent(
        """
        import atexit, os, sys, time
        from concurrent.futures import ThreadPoolExecutor
        from idefics_cli.cli.app import main

        class Library:
            def __del__(self):
                os.write(2, b"leaked")

        library = Library()
        atexit.register(sys.stderr.write, "closed")
        pool = ThreadPoolExecutor(1)
        pool.submit(lambda: (time.sleep(0.3), os.write(2, b"worked ")))
        sys.argv = ["idefics", "--version"]
        main()
        """
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"worked closed")
    assert ran.stdout.startswith(b"idefics ")


def failing_services(error: type[BaseException]) -> Services:
    """Return services that raise *error* where a command looks up its model."""

    def fail(name: str, *, revision: str | None, offline: bool) -> ModelFacts:
        raise error

    return Services(environ={}, stdin=None, find_facts=fail)


def test_ctrl_c_exits_130_without_a_traceback() -> None:
    ran = run("ask", "x", services=failing_services(KeyboardInterrupt))
    assert tuple(ran) == (130, "", "")


def test_a_bug_of_ours_is_not_dressed_up_as_a_users_error() -> None:
    with pytest.raises(ZeroDivisionError):
        make_app()(["ask", "x"], obj=failing_services(ZeroDivisionError))


def test_a_reader_that_leaves_early_ends_the_command_quietly() -> None:
    command = (
        "import sys; sys.argv = ['idefics', 'config']; import idefics_cli.__main__ as m; m.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (1, b"")


# Inputs and outputs, which differ in each call, so they are not settings.
INPUTS_AND_OUTPUTS = {
    "ask": {"text", "image", "schema", "regex", "choice", "ban", "example", "examples"},
    "batch": {"requests", "image_folder", "schema", "regex", "choice", "ban"},
    "chat": {"image", "resume", "session"},
    "caption": {
        *("paths", "filelist", "null", "prompt_file", "ask", "schema", "regex"),
        *("choice", "tags", "ban", "example", "examples", "print_job"),
    },
    "collect": {"whole", "partial"},
    "bench": {
        "scenarios",
        "batch_sizes",
        "contexts",
        "new_tokens",
        "rounds",
        "seconds",
        "quick",
        "shape",
        "plain_quantization",
        "layers",
        "vision_layers",
        "keep_weights",
        "report_file",
        "plot",
    },
    "demo": {"folder"},
    "doctor": {"check"},
    "models": {"name", "remove"},
    "sessions": {
        "key",
        "keys",
        "export_format",
        "destination",
        "replace",
        "older_than",
        "keep",
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_a_setting_with_a_variable_and_a_key(name: str) -> None:
    command = get_command(make_app())
    assert isinstance(command, TyperGroup)
    chosen = command.commands[name]
    members = [chosen, *(chosen.commands.values() if isinstance(chosen, TyperGroup) else ())]
    parameters = {parameter.name for member in members for parameter in member.params}
    assert parameters <= setting_table().keys() | INPUTS_AND_OUTPUTS.get(name, set())


def test_every_setting_is_an_option_of_some_command() -> None:
    command = get_command(make_app())
    assert isinstance(command, TyperGroup)
    names = {parameter.name for member in command.commands.values() for parameter in member.params}
    assert setting_table().keys() <= names


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_help_can_be_written_in_every_encoding(encoding: str) -> None:
    for command in ("", "ask", "chat", "caption", "models"):
        ran = run(*command.split(), "--help", encoding=encoding)
        assert (ran.code, ran.err) == (0, "")
        assert "--help" in ran.out


@pytest.mark.skipif(os.name == "nt", reason="a Unix shell closes it")
@pytest.mark.parametrize("line", ["", "--help", "--version", "config", "doctor -m demo"])
def test_a_closed_stdout_is_an_error_as_nobody_gets_the_answer(
    line: str, warm_python: tuple[str, ...]
) -> None:
    python = (sys.executable,) if line == "config" else warm_python
    command = f"{shlex.join(python)} -m idefics_cli {line} >&-"
    ran = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert ran.stderr.decode() == "error: cannot write the output: stdout is closed\n"
    assert ran.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="a Unix shell closes it")
def test_a_closed_stdout_matters_to_nobody_who_writes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "a b"
    command = f"{shlex.quote(sys.executable)} -m idefics_cli completion install bash >&-"
    environ = {**os.environ, "XDG_DATA_HOME": str(out)}
    ran = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False, env=environ)
    # The script is complete, because its file did not get the descriptor of the closed stdout.
    assert ran.returncode == 1
    script = next(out.rglob("idefics"))
    assert script.read_text("utf-8") == run("completion", "show", "bash").out


@pytest.mark.parametrize("command", ["", *COMMANDS, "models pull", "sessions export"])
def test_help_is_plain_text_with_no_python_types(command: str) -> None:
    shown = run(*command.split(), "--help", terminal=True).out
    assert "\x1b" not in shown
    assert not re.search(r"<(bool|str|list)", shown)


def test_options_are_in_sections() -> None:
    shown = run("ask", "--help").out
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    assert titles == ["Arguments", "Pictures", "Model", "Answer", "Output", "Options"]


def test_every_command_has_our_help() -> None:
    def classes(command: object) -> Iterator[type]:
        yield type(command)
        for child in getattr(command, "commands", {}).values():
            yield from classes(child)

    found = list(classes(get_command(make_app())))
    assert len(found) > 20
    assert all(issubclass(kind, HelpCommand | HelpGroup) for kind in found)


@pytest.mark.parametrize("width", ["40", "200"])
def test_the_overview_is_folded_to_the_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = run(terminal=True).out.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert " ".join(" ".join(lines).split()) == " ".join(run().out.split())


@pytest.mark.parametrize(
    ("command", "others", "given", "expected"),
    [
        ("ask", 8, {}, "passive"),
        ("ask", 0, {}, None),
        ("ask", 8, {"OMP_WAIT_POLICY": "active"}, "active"),
        ("caption", 8, {}, None),
    ],
)
def test_threads_of_a_short_command_sleep_while_they_wait_if_no_core_is_free(
    command: str,
    others: int,
    given: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invocation, "count_other_tasks", lambda: others)
    monkeypatch.setattr(invocation, "count_cores", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    environ = {"HOME": str(Path.home()), **given}
    run(command, "x", "--dry-run", services=Services(environ=environ))
    assert environ.get("OMP_WAIT_POLICY") == expected


@pytest.mark.parametrize("given", [{}, {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "0"}])
@pytest.mark.parametrize("verbosity", ["-v", "-q"])
def test_torch_may_use_fused_attention_on_every_gpu_of_amd(
    given: dict[str, str], verbosity: str
) -> None:
    environ = dict(given)
    run("models", verbosity, services=Services(environ=environ, stdin=None))
    name = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
    assert environ[name] == given.get(name, "1")
