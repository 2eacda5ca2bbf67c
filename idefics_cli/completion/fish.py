"""The script for fish 3 and later."""

from __future__ import annotations

from idefics_cli.completion.spec import ANSWER, PICTURE_ENDINGS, ShellCommand, Value

_HEAD = r"""# Completion of `idefics` in fish. Made by `idefics completion show fish`; do not edit.

# Succeeds if the words of the line, without options, begin with $argv, and the next word is not a
# command of that group.
function __idefics_at
    set -l words (commandline -opc)
    set -e words[1]
    set -l words (string match -v -- '-*' $words)
    set -l depth (count $argv)
    test $depth -gt 0; and test "$words[1..$depth]" != "$argv"; and return 1
    set -l next (math $depth + 1)
    not set -q words[$next]; or not contains -- $words[$next] (__idefics_commands $argv)
end

# Writes the values of the kind $argv[1], each with a tab and its note.
function __idefics_answers
    set -l typed (commandline -opc)
    set -l program (command -s -- (string replace -r '^~' ~ -- $typed[1]))
    test -n "$program"; or set program (command -s idefics); or return
    set -l line
    read line <$program 2>/dev/null
    set -l call (string split -n ' ' -- (string replace '#!' '' -- "$line"))
    if not string match -q '*/bin/*python*' -- "$call[1]"
        $program __complete $argv[1] '' 2>/dev/null
        return
    end
    # The wrapper script of pip takes longer than the answer, so call its Python directly. Skip the
    # search for installed packages (-S) if the folder of this package is known.
    set -l options -P
    set -l site
    for folder in (string replace -r '/bin/.*' '' -- $call[1])/lib/python3*/site-packages
        if test -e $folder/idefics_cli/completion/answers.py
            set options -SP
            set site $folder
        end
    end
    $call $options -c '@ANSWER@' $argv[1] '' $site 2>/dev/null
end

function __idefics_models
    __idefics_answers models
    string match -q '*/*' -- (commandline -ct); and __fish_complete_directories
end

# Writes folders and the files that match the pattern $argv[1], or all files if none matches.
function __idefics_files
    set -l token (string replace -r -- '^--?[^=/]*=' '' (commandline -ct))
    set -l all (complete -C "__fish_command_without_completions $token")
    set -l found (string match -r -i -- "^[^\t]*(?:$argv[1])(?:\t.*)?\$" $all)
    test (count $found) -gt 0; and printf '%s\n' $found; or printf '%s\n' $all
end

function __idefics_pictures
    __idefics_files '\.(?:@PICTURES@)|/'
end

complete -c idefics -f
"""


def fish_script(root: ShellCommand) -> str:
    """Return the script that completes *root*."""
    head = _HEAD.replace("@PICTURES@", "|".join(PICTURE_ENDINGS)).replace("@ANSWER@", ANSWER)
    commands = list(root.walk())
    return head + _groups(commands) + "".join(_lines(command) for command in commands)


def _groups(commands: list[ShellCommand]) -> str:
    """Return the function that lists the commands of each group."""
    lines = ["", "function __idefics_commands", '    switch "$argv"']
    for command in commands:
        if command.commands:
            names = " ".join(child.path[-1] for child in command.commands)
            group = " ".join(command.path[1:])
            lines += [f"        case '{group}'", f"            printf '%s\\n' {names}"]
    return "\n".join([*lines, "    end", "end", ""])


def _lines(command: ShellCommand) -> str:
    words = command.path[1:]
    start = f"complete -c idefics -n '{' '.join(('__idefics_at', *words))}'"
    lines = [""]
    for child in command.commands:
        lines.append(f"{start} -a {child.path[-1]} -d {_quoted(child.help)}")
    for option in command.options:
        flags = " ".join(_flag(flag) for flag in option.flags)
        takes = "" if option.value is None else f" {_takes(option.value)}"
        lines.append(f"{start} {flags}{takes} -d {_quoted(option.help)}")
    for argument in command.arguments:
        if argument.value.kind != "text":
            lines.append(f"{start} {_takes(argument.value).replace('-x ', '').replace('-r ', '')}")
    return "\n".join(lines) + "\n"


def _flag(flag: str) -> str:
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


def _takes(value: Value) -> str:
    """Return the flags of `complete` for *value*: -x offers no files, -r -F offers files."""
    if value.kind == "words":
        # Each word has an empty note. Without it, fish shows the help of the option at each word.
        rows = " ".join(rf"{word}\t''" for word in value.words)
        return f'-x -a "{rows}"'
    return {
        "models": "-x -k -a '(__idefics_models)'",
        "sessions": "-x -k -a '(__idefics_answers sessions)'",
        "pictures": "-x -k -a '(__idefics_pictures)'",
        "files": "-r -F",
        "folders": "-x -a '(__fish_complete_directories)'",
        "text": "-x",
    }[value.kind]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
