"""The completion scripts and the answers for them; `test_shells.py` runs the shells."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.cli.app import make_app
from idefics_cli.completion import answers
from idefics_cli.completion.scripts import SHELLS, catalog, install
from idefics_cli.completion.spec import ANSWER, Kind, ShellCommand, ShellOption, read_commands
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.paths import data_folder
from idefics_cli.models.hub.cache import cached_folder
from idefics_cli.models.hub.registry import DEMO, MODELS
from tests.support.commands import run

TOP = Path(__file__).parents[2]
REMEDY = "out of step with the commands: run `python .ci/make_completions.py`"


def commands() -> ShellCommand:
    root = get_command(make_app())
    assert isinstance(root, TyperGroup)
    return read_commands(root)


def option(path: str, flag: str) -> ShellOption:
    command = next(c for c in commands().walk() if " ".join(c.path) == f"idefics {path}")
    return next(o for o in command.options if flag in o.flags)


@pytest.mark.parametrize("name", SHELLS)
def test_the_committed_script_is_what_the_commands_give(name: str) -> None:
    shell = SHELLS[name]
    committed = (TOP / "completions" / shell.file).read_text(encoding="utf-8")
    # The texts are not compared in the `assert`, because pytest would take minutes to show the
    # difference.
    is_same = committed == shell.render(commands())
    assert is_same, REMEDY


def test_the_committed_catalog_is_the_registry() -> None:
    path = TOP / "idefics_cli" / "completion" / "catalog.py"
    assert path.read_text(encoding="utf-8") == catalog(), REMEDY


@pytest.mark.parametrize("name", SHELLS)
def test_show_prints_the_committed_script(name: str) -> None:
    committed = (TOP / "completions" / SHELLS[name].file).read_text(encoding="utf-8")
    ran = run("completion", "show", name)
    assert (ran.code, ran.err) == (0, "")
    is_same = ran.out == committed
    assert is_same, REMEDY


@pytest.mark.parametrize(
    ("path", "flag", "kind"),
    [
        ("ask", "-i", "pictures"),
        ("ask", "-m", "models"),
        ("chat", "--session", "sessions"),
        ("caption", "--format", "words"),
        ("caption", "--output", "files"),
        ("caption", "--prompt", "text"),
    ],
)
def test_a_value_completes_by_its_kind(path: str, flag: str, kind: Kind) -> None:
    value = option(path, flag).value
    assert value is not None
    assert value.kind == kind


def test_words_are_the_choices_and_those_that_the_help_names() -> None:
    device = option("ask", "--device").value
    assert device is not None
    assert device.words == ("auto", "cpu", "mps", "cuda")


def test_hidden_commands_and_options_are_not_completed() -> None:
    program = typer.Typer()

    @program.command()
    def seen(secret: bool = typer.Option(False, hidden=True), known: bool = False) -> None: ...

    @program.command(hidden=True)
    def unseen() -> None: ...

    program.callback()(lambda: None)
    root = get_command(program)
    assert isinstance(root, TyperGroup)
    (command,) = read_commands(root).commands
    assert command.path == ("idefics", "seen")
    flags = {flag for option in command.options for flag in option.flags}
    assert flags == {"--known", "--no-known", "--help"}


def test_every_flag_of_every_command_is_in_every_script() -> None:
    for name, shell in SHELLS.items():
        script = shell.render(commands())
        for command in commands().walk():
            for flag in (flag for option in command.options for flag in option.flags):
                shown = f"-l {flag[2:]}" if name == "fish" and flag.startswith("--") else flag
                shown = f"-s {flag[1:]}" if name == "fish" and not flag.startswith("--") else shown
                if name in ("bash", "powershell") and not flag.startswith("--"):
                    continue  # these scripts do not offer short flags
                assert re.search(rf"{re.escape(shown)}\b", script), (name, flag)


def test_powershell_s_script_closes_what_it_opens_and_has_no_key_twice() -> None:
    script = SHELLS["powershell"].render(commands())
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|#[^\n]*", "", script)
    for opening, closing in ("{}", "()", "[]"):
        assert bare.count(opening) == bare.count(closing)
    for table in re.findall(r"(?:Flags = \[ordered\]|Valued = )@\{(.*?)\}\n", script):
        # The keys of its tables ignore case, so `-c` and `-C` would be equal.
        keys = [key.lower() for key in re.findall(r"(?:^ |; )'(-[^']+)' =", table)]
        assert len(keys) == len(set(keys))


# Installing


def test_installing_twice_changes_nothing_and_says_so(tmp_path: Path) -> None:
    first = run("completion", "install", "fish")
    path = Path.home() / ".config" / "fish" / "completions" / "idefics.fish"
    assert tuple(first) == (0, f"{path}\n", "open a new terminal\n")
    before = path.stat().st_mtime_ns
    again = run("completion", "install", "fish")
    assert tuple(again) == (
        0,
        f"{path}\n",
        "the file is already there and up to date\nopen a new terminal\n",
    )
    assert path.stat().st_mtime_ns == before


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    before = set(Path.home().rglob("*"))
    ran = run("completion", "install", "bash", "--dry-run")
    path = Path.home() / ".local/share/bash-completion/completions/idefics"
    assert (ran.code, ran.out) == (0, f"{path}\n")
    assert ran.err.startswith("would write this file:\n")
    assert f"source '{path}'" in ran.err
    assert set(Path.home().rglob("*")) == before


@pytest.mark.parametrize("name", SHELLS)
def test_install_writes_one_file_and_leaves_the_others_alone(name: str, tmp_path: Path) -> None:
    home = Path.home()
    rc = [home / ".bashrc", home / ".zshrc", home / ".profile"]
    for file in rc:
        file.write_text("mine\n")
    written = run("completion", "install", name).out.strip()
    assert {file for file in home.rglob("*") if file.is_file()} == {Path(written), *rc}
    assert all(file.read_text() == "mine\n" for file in rc)
    assert Path(written).read_bytes() == run("completion", "show", name).out.encode()


def test_a_full_disk_leaves_the_script_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "fish" / "idefics.fish"
    install(path, "old script\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(IdeficsError, match="file too large"):
            install(path, "# new\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {p.name: p.read_text() for p in path.parent.iterdir()} == {path.name: "old script\n"}


def test_a_link_to_the_script_stays_a_link(tmp_path: Path) -> None:
    kept, link = tmp_path / "dotfiles.fish", tmp_path / "idefics.fish"
    kept.write_text("old")
    link.symlink_to(kept)
    assert install(link, "new")
    assert (link.is_symlink(), kept.read_text()) == (True, "new")


def test_install_says_what_is_in_the_way(tmp_path: Path) -> None:
    (Path.home() / ".config").mkdir()
    (Path.home() / ".config" / "fish").write_text("")
    path = Path.home() / ".config" / "fish" / "completions" / "idefics.fish"
    assert tuple(run("completion", "install", "fish")) == (
        1,
        "",
        f"error: cannot write `{path}`: not a directory\n"
        "hint: `idefics completion show SHELL` prints the script\n",
    )


def test_an_unknown_shell_is_told() -> None:
    assert tuple(run("completion", "show", "tcsh")) == (
        2,
        "",
        "error: no completion for the shell `tcsh`\nhint: choose bash, zsh, fish or powershell\n",
    )


# Answers


def cache(root: Path, name: str, *files: str) -> None:
    folder = root / f"models--{MODELS[name].repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc\n")
    for file in files:
        (snapshot / file).write_text("{}")
    if "model.safetensors.index.json" in files:
        parts = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        text = json.dumps({"weight_map": dict(enumerate(parts))})
        (snapshot / "model.safetensors.index.json").write_text(text)


SMALL = ("config.json", "tokenizer.json", "preprocessor_config.json")
INDEX = "model.safetensors.index.json"
PARTS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


@pytest.mark.parametrize(
    "files",
    [
        (*SMALL, "model.safetensors"),
        (*SMALL, INDEX, *PARTS),
        (*SMALL, INDEX, *PARTS[:2]),
        (*SMALL, INDEX),
        SMALL,
        (*SMALL[1:], "model.safetensors"),
        (*SMALL[:2], "model.safetensors"),
        ("config.json", "vocab.json", "processor_config.json", "model.safetensors"),
        (),
    ],
    ids=lambda files: " ".join(files)[:60],
)
def test_a_model_is_told_as_downloaded_when_the_cache_has_all_of_it(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    name = "idefics2-8b"
    cache(tmp_path, name, *files)
    ((_, note), *_) = answers.models(name, {"HF_HUB_CACHE": str(tmp_path)})
    is_cached = cached_folder(MODELS[name].repo, root=tmp_path) is not None
    assert note.startswith("downloaded; ") == is_cached


def test_models_are_those_of_the_registry() -> None:
    assert answers.models("", {}) == [(m.name, m.summary) for m in MODELS.values()]
    assert answers.models("idefics3", {}) == [("idefics3-8b", MODELS["idefics3-8b"].summary)]
    # Both modules know the built-in model, which needs no download, by one name.
    assert (answers.BUILT_IN, MODELS[DEMO].repo) == (DEMO, DEMO)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HOME": "/a"},
        {"HF_HUB_CACHE": "/b", "HF_HOME": "/a"},
        {"HUGGINGFACE_HUB_CACHE": "/c"},
        {"XDG_CACHE_HOME": "/d"},
        {"HF_HOME": "~/e"},
        {"HF_HUB_CACHE": "$HOME/f"},
    ],
    ids=str,
)
def test_the_cache_is_where_the_hub_client_has_it(environ: Mapping[str, str]) -> None:
    # huggingface_hub reads the variables once, at import.
    code = "from huggingface_hub.constants import *; print(HF_HUB_CACHE, end='')"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environ}, capture_output=True, check=True
    )
    assert answers.hub_cache_path(environ) == done.stdout.decode()


@pytest.mark.parametrize(
    "environ",
    [{"HOME": "/h"}, {}, {"HOME": ""}, {"XDG_DATA_HOME": "/x"}, {"XDG_DATA_HOME": "x"}],
    ids=str,
)
def test_the_sessions_are_where_the_store_has_them(environ: Mapping[str, str]) -> None:
    assert answers.data_folder_path(environ) == str(data_folder(environ))


def test_sessions_are_those_of_the_store() -> None:
    store = SessionStore(data_folder(os.environ))
    for number, (name, question) in enumerate(
        [
            ("holiday", "What is it?"),
            ('a "quoted" \\name\\', "short"),
            (None, 'Read "this" \\ and\nthat\t\\n.'),
            ("grün 猫", "x" * 100),
            (None, 'with ,"name":"a trap" inside'),
        ]
    ):
        session = store.create("demo", name)
        session.ask(question, [])
        if number == 0:
            session.rename("renamed")
        session.close()
        os.utime(data_folder(os.environ) / "sessions" / f"{session.id}.jsonl", (number, number))
    stored = {info.name or info.id for info in store.list()}
    rows = answers.sessions("", os.environ)
    assert rows[0] == ("last", "the last chat")
    assert {value for value, _ in rows[1:]} == stored
    assert "renamed" in stored
    titles = [note for _, note in rows[1:]]
    assert titles == [
        'with ,"name":"a trap" inside',
        "x" * 59 + "…",
        'Read "this" \\ and that \\n.',
        "short",
        "What is it?",
    ]
    assert answers.sessions("gr", os.environ) == [("grün 猫", "x" * 59 + "…")]


def test_broken_sessions_and_hostile_names_do_not_reach_the_terminal() -> None:
    folder = data_folder(os.environ) / "sessions"
    folder.mkdir(parents=True)
    (folder / "aaaaaaaa.jsonl").write_bytes(b"\xff\0{")
    (folder / "bbbbbbbb.jsonl").write_bytes(b'{"event":"started","model":"m","name":"a\x1b[2J"}\n')
    (folder / "cccccccc.jsonl").write_bytes(
        b'{"event":"started","model":"m","name":null}\n{"event":"asked","text":"\x1b]0;x\x07"}\n'
    )
    (folder / "dddddddd.jsonl").mkdir()
    done = ask("sessions")
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert {row[0] for row in rows} == {"last", "aaaaaaaa", "cccccccc", "dddddddd"}
    assert b"\x1b" not in done.stdout
    assert done.stderr == b""


def ask(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-c", ANSWER, *arguments],
        capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_all_ways_to_ask_give_the_same() -> None:
    hidden = subprocess.run(
        [sys.executable, "-m", "idefics_cli", "__complete", "models", "smol"],
        capture_output=True,
        check=False,
    )
    direct = ask("models", "smol")
    without_site = subprocess.run(
        [sys.executable, "-SP", "-c", ANSWER, "models", "smol", str(TOP)],
        capture_output=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert (without_site.returncode, without_site.stdout) == (0, direct.stdout)
    assert (hidden.returncode, hidden.stdout) == (direct.returncode, direct.stdout)
    assert direct.stdout.startswith(b"smolvlm-")
    assert ask("models").stdout.count(b"\n") == len(MODELS)


@pytest.mark.parametrize("arguments", [(), ("cats",), ("models", "a", "b")])
def test_a_strange_request_is_no_traceback(arguments: tuple[str, ...]) -> None:
    done = ask(*arguments)
    assert (done.returncode, done.stderr) == (0 if "models" in arguments else 2, b"")


@pytest.mark.parametrize("kind", ["models", "sessions"])
def test_an_answer_imports_nothing_that_python_does_not(kind: str) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    show = "import sys; print(*sys.modules)"
    bare = subprocess.run([sys.executable, "-P", "-c", show], env=environ, capture_output=True)
    code = f"import os, sys; from idefics_cli.completion import answers; answers.{kind}('', {{}}); "
    asked = subprocess.run(
        [sys.executable, "-P", "-c", code + show], env=environ, capture_output=True, check=True
    )
    extra = set(asked.stdout.split()) - set(bare.stdout.split())
    assert extra == {
        b"idefics_cli",
        b"idefics_cli.completion",
        b"idefics_cli.completion.answers",
        b"idefics_cli.completion.catalog",
    }


def test_an_answer_takes_no_more_than_an_empty_python_and_a_third() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=environ, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    def ratio() -> float:
        ask = ("-SP", "-c", ANSWER, "models", "", str(TOP))
        pairs = [(seconds(*ask), seconds("-c", "pass")) for _ in range(15)]
        return statistics.median(answer / empty for answer, empty in pairs)

    # The best of three counts, because other programs can only add time.
    assert any(ratio() <= 1.3 for _ in range(3))
