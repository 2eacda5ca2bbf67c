"""The script for zsh 5 and later; it can be sourced, or stored in a folder of `$fpath`."""

from __future__ import annotations

from idefics_cli.completion.spec import ANSWER, PICTURE_ENDINGS, ShellCommand, ShellOption, Value

_HEAD = r"""#compdef idefics
# Completion of `idefics` in zsh. Made by `idefics completion show zsh`; do not edit.

# Offers the values of the kind $1, with their notes.
__idefics_answers() {
  local program line value note
  local -a rows sites
  program=${commands[${words_typed[1]:t}]:-$commands[idefics]}
  [[ ${words_typed[1]} == */* ]] && program=${~words_typed[1]}
  [[ -r $program ]] && { IFS= read -r line <$program } 2>/dev/null
  line=${line#'#!'}
  local -a call=($program __complete $1 '')
  # The wrapper script of pip takes longer than the answer, so call its Python directly. Skip the
  # search for installed packages (-S) if the folder of this package is known.
  if [[ ${line%% *} == */bin/*python* ]]; then
    sites=(${line%%/bin/*}/lib/python3*/site-packages/idefics_cli/completion/answers.py(N[1]:h:h:h))
    call=(${=line} -${sites:+S}P -c '@ANSWER@' $1 '' $sites)
  fi
  "${call[@]}" 2>/dev/null | while IFS=$'\t' read -r value note; do
    rows+=("${value//:/\\:}${note:+:$note}")
  done
  _describe -V -t $1 ${1%s} rows
}

__idefics_models() { __idefics_answers models || _files -/ }
__idefics_sessions() { __idefics_answers sessions }
__idefics_pictures() { _files -g '*.(#i)(@PICTURES@)(-.)' }
"""

_TAIL = r"""
__idefics() {
  local -a words_typed=("$words[@]")
  _idefics_main
}

if [[ $funcstack[1] == _idefics ]]; then
  __idefics "$@"
else
  compdef __idefics idefics
fi
"""


def zsh_script(root: ShellCommand) -> str:
    """Return the script that completes *root*."""
    head = _HEAD.replace("@PICTURES@", "|".join(PICTURE_ENDINGS)).replace("@ANSWER@", ANSWER)
    return head + "".join(_function(command) for command in root.walk()) + _TAIL


def _function_name(path: tuple[str, ...]) -> str:
    return "_".join(("_idefics_main", *(word.replace("-", "_") for word in path[1:])))


def _function(command: ShellCommand) -> str:
    specs = [_option(option) for option in command.options]
    for number, argument in enumerate(command.arguments, 1):
        place = "*" if argument.repeats else str(number)
        specs.append(f"'{place}:{_plain(argument.value.name)}:{_action(argument.value)}'")
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->rest'"]
    arguments = " \\\n".join(["  _arguments -s -S -C", *(f"    {spec}" for spec in specs)])
    body = _dispatch(command) if command.commands else f"{arguments}\n"
    if command.commands:
        body = (
            '  local curcontext="$curcontext" state line ret=1\n'
            "  typeset -A opt_args\n"
            f"{arguments} && ret=0\n{body}  return ret\n"
        )
    return f"\n{_function_name(command.path)}() {{\n{body}}}\n"


def _dispatch(command: ShellCommand) -> str:
    rows = "".join(
        f"        '{child.path[-1]}:{_quoted(child.help)}'\n" for child in command.commands
    )
    cases = "".join(
        f"        {child.path[-1]}) {_function_name(child.path)} && ret=0 ;;\n"
        for child in command.commands
    )
    return (
        "  case $state in\n"
        "    command)\n"
        f"      local -a rows=(\n{rows}      )\n"
        "      _describe -t commands command rows && ret=0\n"
        "      ;;\n"
        "    rest)\n"
        f'      curcontext="${{curcontext%:*:*}}:{"-".join(command.path)}-$line[1]:"\n'
        f"      case $line[1] in\n{cases}      esac\n"
        "      ;;\n"
        "  esac\n"
    )


def _option(option: ShellOption) -> str:
    note = f"[{_bracketed(option.help)}]"
    value = option.value
    if value is not None:
        note += f":{_plain(value.name)}:{_action(value)}"
    flags = [_flag(flag, takes_value=value is not None) for flag in option.flags]
    spellings = flags[0] if len(flags) == 1 else f"{{{','.join(flags)}}}"
    before = "*" if option.repeats else f"({' '.join(option.flags)})"
    return f"'{before}'{spellings}'{note}'"


def _flag(flag: str, *, takes_value: bool) -> str:
    if not takes_value:
        return flag
    return f"{flag}=" if flag.startswith("--") else f"{flag}+"


def _action(value: Value) -> str:
    if value.kind == "words":
        return f"({' '.join(value.words)})"
    return {
        "models": "__idefics_models",
        "sessions": "__idefics_sessions",
        "pictures": "__idefics_pictures",
        "files": "_files",
        "folders": "_files -/",
        "text": " ",
    }[value.kind]


def _plain(text: str) -> str:
    return _quoted(text.replace(":", "\\:"))


def _bracketed(text: str) -> str:
    return _quoted(text.replace("[", "\\[").replace("]", "\\]"))


def _quoted(text: str) -> str:
    """Return *text* with escapes for use between single quotes."""
    return text.replace("'", "'\\''")
