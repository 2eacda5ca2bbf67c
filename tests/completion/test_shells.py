"""Completion in real shells, which a pseudo-terminal drives.

The program `idefics` of these shells prints its arguments, so a test reads what TAB inserted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.paths import data_folder
from tests.support.commands import run

pexpect = pytest.importorskip("pexpect")  # no pseudo-terminals on Windows

PACKAGE = Path("/usr/share/bash-completion/bash_completion")
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])")
PROMPT = "READY> "
ZSH_RC = """
fpath=('{folder}' $fpath)
autoload -Uz compinit && compinit -u -D
PS1='{prompt}'
unsetopt beep
"""
FISH_RC = """
function fish_prompt; echo -n '{prompt}'; end
function fish_greeting; end
set -g fish_autosuggestion_enabled 0
"""
RECORDER = """#!{python}
import json, sys
print("ARGUMENTS" + json.dumps(sys.argv[1:]) + "END")
"""


@dataclass(frozen=True)
class Kind:
    """A shell, and the files that load the script in it."""

    name: str
    program: str
    arguments: tuple[str, ...]
    start: str
    needs: tuple[Path, ...] = field(default=())


KINDS = (
    Kind(
        "bash alone",
        "bash",
        ("--noprofile", "--rcfile", "{rc}", "-i"),
        "source '{path}'\nPS1='{prompt}'\nbind 'set show-all-if-ambiguous on'\n",
    ),
    Kind(
        "bash with bash-completion",
        "bash",
        ("--noprofile", "--rcfile", "{rc}", "-i"),
        f"source {PACKAGE}\nPS1='{{prompt}}'\nbind 'set show-all-if-ambiguous on'\n",
        (PACKAGE,),
    ),
    Kind("zsh", "zsh", ("-i",), ZSH_RC),
    Kind("zsh sourced", "zsh", ("-i",), ZSH_RC.replace("PS1", "source '{path}'\nPS1", 1)),
    Kind("fish", "fish", ("-i",), FISH_RC),
)


class Terminal:
    """A shell in a pseudo-terminal, in a folder with pictures and texts."""

    def __init__(self, kind: Kind, home: Path, folder: Path) -> None:
        path = install(kind)
        rc = {"zsh": home / ".zshrc", "fish": home / ".config/fish/config.fish"}.get(
            kind.program, home / "rc"
        )
        rc.parent.mkdir(parents=True, exist_ok=True)
        rc.write_text(
            kind.start.replace("{path}", str(path))
            .replace("{folder}", str(path.parent if kind.name != "zsh sourced" else home))
            .replace("{prompt}", PROMPT)
        )
        # Without this folder, fish reads all manual pages in a process that outlives it, for half
        # a minute.
        (home / ".local/share/fish/generated_completions").mkdir(parents=True, exist_ok=True)
        environ = {
            **os.environ,
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(sys.path),
            # fish 4 queries the terminal and waits 10 s for an answer.
            "fish_features": "no-query-term",
        }
        self.child = pexpect.spawn(
            kind.program,
            [argument.replace("{rc}", str(rc)) for argument in kind.arguments],
            env=environ, cwd=str(folder), dimensions=(50, 160), timeout=10, encoding="utf-8",
        )  # fmt: skip
        self.child.delaybeforesend = None
        self.child.expect_exact(PROMPT)

    def shown_after(self, typed: str, *texts: str) -> None:
        """Type *typed* and a TAB; wait until all *texts* are shown. Leaves the line as it is.

        What the terminal shows late of an earlier line may be among what is searched for *texts*.
        """
        self.child.send(typed + "\t")
        seen = ""
        while not all(text in seen for text in texts):
            try:
                self.child.expect(r"[^\x00]+")
            except pexpect.TIMEOUT:
                pytest.fail(f"`{typed}` shows no {texts}, but {seen!r}")
            seen += ESCAPES.sub("", self.child.after)

    def arguments_after(self, typed: str) -> list[str]:
        """Type *typed*, which may have TABs, and Enter; return the arguments of the program."""
        self.child.send(typed + "\r")
        try:
            self.child.expect(r"ARGUMENTS(\[.*?\])END")
        except pexpect.TIMEOUT:
            pytest.fail(f"`{typed}` did not run: {ESCAPES.sub('', self.child.before)!r}")
        arguments = json.loads(self.child.match[1])
        self.child.expect_exact(PROMPT)
        # zsh removes the slash after a folder when it runs the line.
        return [argument.rstrip("/") for argument in arguments]


def install(kind: Kind) -> Path:
    ran = run("completion", "install", kind.program)
    assert ran.code == 0, ran
    return Path(ran.out.strip())


Open = Callable[[], Terminal]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    kind: Kind = request.param
    if not shutil.which(kind.program) or not all(path.exists() for path in kind.needs):
        pytest.skip(f"{kind.name} is not installed")
    home, folder = Path.home(), tmp_path / "work"
    program = home / "bin" / "idefics"
    program.parent.mkdir()
    program.write_text(RECORDER.format(python=sys.executable))
    program.chmod(0o755)
    for name in (
        "my holiday.jpg",
        "my holiday.txt",
        "note.PNG",
        "notes.txt",
        "read.me",
        "pics/a:b.jpeg",
    ):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    store_sessions()
    cache_model(home / "hf" / "hub")
    with ExitStack() as stack:

        def open_terminal() -> Terminal:
            terminal = Terminal(kind, home, folder)
            stack.callback(terminal.child.close, force=True)
            return terminal

        yield open_terminal


def store_sessions() -> None:
    store = SessionStore(data_folder(os.environ))
    session = store.create("demo", "holiday in Rome")
    session.ask("Which fountain is it?", [])
    session.close()


def cache_model(hub: Path) -> None:
    folder = hub / "models--HuggingFaceTB--SmolVLM-256M-Instruct"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    names = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
    for name in names:
        (snapshot / name).touch()


def test_tab_completes_what_is_typed(shell: Open) -> None:
    terminal = shell()
    for typed, arguments in (
        ("idefics cap\t", ["caption"]),
        ("idefics sess\texp\t", ["sessions", "export"]),
        ("idefics chat --model idefics3\t", ["chat", "--model", "idefics3-8b"]),
        ("idefics chat -m ide\t3\t", ["chat", "-m", "idefics3-8b"]),
        ("idefics caption --format j\t", ["caption", "--format", "jsonl"]),
        ("idefics caption --format=j\t", ["caption", "--format=jsonl"]),
        ("idefics sessions export last -f h\t", ["sessions", "export", "last", "-f", "html"]),
        ("idefics ask Hi -i my\t", ["ask", "Hi", "-i", "my holiday.jpg"]),
        ("idefics ask Hi -i my\\ ho\t", ["ask", "Hi", "-i", "my holiday.jpg"]),
        ("idefics ask Hi -i 'my ho\t", ["ask", "Hi", "-i", "my holiday.jpg"]),
        ("idefics ask Hi -i not\t", ["ask", "Hi", "-i", "note.PNG"]),
        ("idefics ask Hi --image=not\t", ["ask", "Hi", "--image=note.PNG"]),
        ("idefics ask Hi -i rea\t", ["ask", "Hi", "-i", "read.me"]),
        ("idefics caption -r my\tnot\t", ["caption", "-r", "my holiday.jpg", "note.PNG"]),
        ("idefics caption x -o notes\t", ["caption", "x", "-o", "notes.txt"]),
        ("idefics caption pics/a\t", ["caption", "pics/a:b.jpeg"]),
        ("idefics demo p\t", ["demo", "pics"]),
        ("idefics ask -m ./p\t", ["ask", "-m", "./pics"]),
        ("idefics chat --session hol\t", ["chat", "--session", "holiday in Rome"]),
        ("idefics sessions show la\t", ["sessions", "show", "last"]),
        ("$HOME/bin/idefics cap\t", ["caption"]),
    ):
        assert (typed, terminal.arguments_after(typed)) == (typed, arguments)


QUICK = """
def run(arguments):
    print("from-the-folder" if arguments[0] == "models" and len(arguments) == 2 else "from?")
"""


def test_tab_asks_the_package_in_the_folder_of_the_program_s_python(
    shell: Open, tmp_path: Path
) -> None:
    bin_folder = Path.home() / "env" / "bin"
    package = bin_folder.parent / "lib/python3.99/site-packages/idefics_cli/completion"
    package.mkdir(parents=True)
    for module in (package.parent / "__init__.py", package / "__init__.py"):
        module.touch()
    (package / "answers.py").write_text(QUICK)
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(Path(sys.executable).resolve())
    program = Path.home() / "bin" / "idefics"
    program.write_text(RECORDER.format(python=bin_folder / "python3"))
    assert shell().arguments_after("idefics ask -m from\t") == ["ask", "-m", "from-the-folder"]


def test_tab_shows_what_there_is(shell: Open) -> None:
    terminal = shell()
    for typed, texts in (
        ("idefics ", ("ask", "caption", "sessions", "completion")),
        ("idefics caption --format ", ("tsv", "jsonl")),
        ("idefics chat --model ide\t", ("idefics2-8b-chatty", "idefics-9b")),
        ("idefics ask -m smolvlm-", ("smolvlm-500m", "downloaded;")),
        ("idefics ask --te", ("--temperature",)),
        ("idefics sessions show ", ("holiday", "Which fountain")),
    ):
        terminal.shown_after(typed, *texts)
        terminal.child.send("\x15")  # Ctrl-U empties the line
