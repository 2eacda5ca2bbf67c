"""The script for bash 4 and later, with or without the package bash-completion."""

from __future__ import annotations

from idefics_cli.completion.spec import ANSWER, PICTURE_ENDINGS, ShellCommand

_HEAD = r"""# Completion of `idefics` in bash. Made by `idefics completion show bash`; do not edit.

# Sets `commands`, `flags`, `valued` and `arguments` to those of the command $1.
_idefics_command() {
    case $1 in
"""

_TAIL = r"""    esac
}

# Sets `kind` to the kind of value of the option $1; fails if the option takes no value.
_idefics_kind() {
    local pair
    for pair in $valued; do
        kind=${pair#*=}
        [[ ${pair%%=*} == "$1" ]] && return
    done
    kind=
    return 1
}

# Writes the values of the kind $1 that begin with $2: on each line a value, a tab and a note.
# Ends the subshell in which it runs.
_idefics_ask() {
    local name folder program= line= options=-P site= IFS=:
    # `$(type -P …)` would find the program too, but it starts a process.
    for name in "${words[0]/#\~/$HOME}" idefics; do
        [[ $name == */* && -x $name ]] && program=$name
        for folder in $PATH; do
            [[ -z $program && -f $folder/$name && -x $folder/$name ]] && program=$folder/$name
        done
        [[ $program ]] && break
    done
    [[ $program ]] || return
    IFS=$' \t\n'
    { IFS= read -r line <"$program"; } 2>/dev/null
    line=${line#'#!'}
    # The wrapper script of pip takes longer than the answer, so call its Python directly.
    [[ ${line%% *} == */bin/*python* ]] || exec "$program" __complete "$1" "$2" 2>/dev/null
    # Skip the search for installed packages (-S) if the folder of this package is known.
    for folder in "${line%%/bin/*}"/lib/python3*/site-packages; do
        [[ -e $folder/idefics_cli/completion/answers.py ]] && options=-SP site=$folder
    done
    exec $line $options -c "$_idefics_answer" "$1" "$2" ${site:+"$site"} 2>/dev/null
}
_idefics_answer='@ANSWER@'

_idefics_offer_words() {
    local word
    for word in $1; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
}

_idefics_offer_answers() {
    local value note notes=()
    while IFS=$'\t' read -r value note; do
        printf -v value %q "$value"
        COMPREPLY+=("$value")
        notes+=("$note")
    done < <(_idefics_ask "$1" "${cur//\\/}")
    compopt -o nosort 2>/dev/null
    # Show several matches with their notes. COMP_TYPE 37 and 42 insert matches instead.
    if (( ${#COMPREPLY[@]} > 1 && COMP_TYPE != 37 && COMP_TYPE != 42 )); then
        local i width=0
        for value in "${COMPREPLY[@]}"; do
            (( ${#value} > width )) && width=${#value}
        done
        for i in "${!COMPREPLY[@]}"; do
            [[ ${notes[i]} ]] || continue
            printf -v value "%-${width}s  (%s)" "${COMPREPLY[i]}" "${notes[i]}"
            COMPREPLY[i]=${value:0:${COLUMNS:-80}-1}
        done
    fi
}

# Offers folders, and the files of the kind $1 (`folders` has none). If nothing matches, Readline
# offers all files, but not for `folders`.
_idefics_offer_files() {
    local start=$cur path home=
    # Readline passes a quoted word with its quotes, and quotes the result itself.
    case $start in
    [\"\']*) start=${start:1} ;;
    *) start=${start//\\/} ;;
    esac
    [[ $start == '~/'* ]] && home='~' start=$HOME${start:1}
    for path in "$start"*; do
        if [[ ! -d $path ]]; then
            [[ -e $path && $1 != folders ]] || continue
            if [[ $1 == pictures ]]; then
                case $path in
                @PICTURES@) ;;
                *) continue ;;
                esac
            fi
        fi
        COMPREPLY+=("$home${path#"${home:+$HOME}"}")
    done
    compopt -o filenames 2>/dev/null
    [[ $1 == folders ]] || compopt -o default 2>/dev/null
}

_idefics() {
    local commands flags valued arguments
    local cur kind='' path=idefics option='' ended='' position=0
    local line=${COMP_LINE:0:COMP_POINT} words=() word i
    COMPREPLY=()
    # Readline also splits words at `=` and `:`; join the parts without a blank between them.
    for (( i = 0; i <= COMP_CWORD; i++ )); do
        word=${line%%[![:space:]]*}
        line=${line#"$word"}
        if [[ $word || $i == 0 ]]; then
            words+=('')
        fi
        word=${COMP_WORDS[i]}
        (( i == COMP_CWORD )) && word=$line
        line=${line#"$word"}
        words[${#words[@]}-1]+=$word
    done
    cur=${words[${#words[@]}-1]}

    _idefics_command "$path"
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $option ]]; then
            option=
        elif [[ $ended || $word != -?* ]]; then
            if [[ ! $ended && " $commands " == *" $word "* ]]; then
                path+=" $word"
                _idefics_command "$path"
            else
                (( position++ ))
            fi
        elif [[ $word == -- ]]; then
            ended=1
        elif _idefics_kind "$word"; then
            option=$word
        fi
    done

    local before=
    if [[ $option ]]; then
        _idefics_kind "$option"
    elif [[ ! $ended && $cur == -*=* ]] && _idefics_kind "${cur%%=*}"; then
        [[ $COMP_WORDBREAKS == *=* ]] || before=${cur%%=*}=
        cur=${cur#*=}
    elif [[ ! $ended && $cur == -* ]]; then
        kind=flags
    elif [[ $commands ]]; then
        kind=commands
    else
        for kind in $arguments; do
            [[ $kind == *'*' ]] && break
            (( position-- == 0 )) && break
            kind=
        done
        kind=${kind%'*'}
        [[ $kind == text ]] && kind=
        [[ $kind || $cur ]] || kind=flags
    fi

    case $kind in
    flags) _idefics_offer_words "$flags" ;;
    commands) _idefics_offer_words "$commands" ;;
    words:*) kind=${kind#words:} && _idefics_offer_words "${kind//,/ }" ;;
    models)
        _idefics_offer_answers models
        (( ${#COMPREPLY[@]} )) || _idefics_offer_files folders
        ;;
    sessions) _idefics_offer_answers sessions ;;
    pictures | files | folders) _idefics_offer_files "$kind" ;;
    esac

    # Readline replaces only the text after the last `:`, so remove the part before from each match.
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* && $cur != [\"\']* ]]; then
        local colon=${cur%"${cur##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$colon"}")
    fi
    [[ $before ]] && COMPREPLY=("${COMPREPLY[@]/#/$before}")
}

complete -F _idefics idefics
"""


def bash_script(root: ShellCommand) -> str:
    """Return the script that completes *root*."""
    pictures = " | ".join(f"*.{e} | *.{e.upper()}" for e in PICTURE_ENDINGS)
    table = "".join(_case(command) for command in root.walk())
    tail = _TAIL.replace("@PICTURES@", pictures).replace("@ANSWER@", ANSWER)
    return _HEAD + table + tail


def _case(command: ShellCommand) -> str:
    valued = [
        f"{flag}={option.value.code}"
        for option in command.options
        if option.value
        for flag in option.flags
    ]
    # Short flags are not offered, because typing them is faster than completing them.
    flags = [f for option in command.options for f in option.flags if f.startswith("--")]
    arguments = [a.value.code + ("*" if a.repeats else "") for a in command.arguments]
    rows = {
        "commands": [child.path[-1] for child in command.commands],
        "flags": flags,
        "valued": valued,
        "arguments": arguments,
    }
    lines = "".join(f"        {name}='{' '.join(words)}'\n" for name, words in rows.items())
    return f"    '{' '.join(command.path)}')\n{lines}        ;;\n"
