# Completion of `idefics` in bash. Made by `idefics completion show bash`; do not edit.

# Sets `commands`, `flags`, `valued` and `arguments` to those of the command $1.
_idefics_command() {
    case $1 in
    'idefics')
        commands='ask chat caption collect batch serve tune doctor bench demo sessions models config completion'
        flags='--version --help'
        valued=''
        arguments=''
        ;;
    'idefics ask')
        commands=''
        flags='--image --model --server --api-key-file --revision --adapter --device --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --yes --system --raw --example --examples --schema --schema-prompt --no-schema-prompt --regex --choice --ban --temperature --top-p --top-k --repetition-penalty --max-new-tokens --seed --max-pixels --max-bytes --timeout-seconds --truncated --background --json --stream --no-stream --dry-run --verbose --quiet --help'
        valued='-i=pictures --image=pictures -m=models --model=models --server=text --api-key-file=files --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text -s=text --system=text --example=text --examples=files --schema=text --regex=text --choice=text --ban=text --temperature=text --top-p=text --top-k=text --repetition-penalty=text --max-new-tokens=text --seed=text --max-pixels=text --max-bytes=text --timeout-seconds=text --truncated=words:keep,refuse --background=words:black,gray'
        arguments='text'
        ;;
    'idefics chat')
        commands=''
        flags='--image --continue --session --model --server --api-key-file --revision --adapter --device --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --yes --system --temperature --top-p --top-k --repetition-penalty --max-new-tokens --seed --max-pixels --max-bytes --timeout-seconds --truncated --background --json --stream --no-stream --plain --no-plain --preview --no-preview --accessible --no-accessible --save --no-save --dry-run --verbose --quiet --help'
        valued='-i=pictures --image=pictures --session=sessions -m=models --model=models --server=text --api-key-file=files --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text -s=text --system=text --temperature=text --top-p=text --top-k=text --repetition-penalty=text --max-new-tokens=text --seed=text --max-pixels=text --max-bytes=text --timeout-seconds=text --truncated=words:keep,refuse --background=words:black,gray'
        arguments=''
        ;;
    'idefics caption')
        commands=''
        flags='--recursive --no-recursive --follow-links --no-follow-links --filelist --null --shard --batch-size --model --server --api-key-file --revision --adapter --device --devices --ray --workers --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --yes --prompt --prompt-file --ask --schema --schema-prompt --no-schema-prompt --regex --choice --tags --example --examples --ban --temperature --top-p --top-k --repetition-penalty --max-new-tokens --seed --samples --prefix --suffix --trigger --strip-preamble --no-strip-preamble --on-truncate --max-pixels --max-bytes --timeout-seconds --truncated --background --format --output --existing --overwrite --no-overwrite --embed --full-names --no-full-names --text-extension --report --retry-failed --failures --fail-fast --max-failures --dry-run --print-job --verbose --quiet --help'
        valued='--filelist=files --shard=words:auto --batch-size=text -m=models --model=models --server=text --api-key-file=files --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --devices=words:cpu,all --ray=words:auto --workers=text --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text -p=text --prompt=text --prompt-file=files --ask=text --schema=text --regex=text --choice=text --tags=files --example=text --examples=files --ban=text --temperature=text --top-p=text --top-k=text --repetition-penalty=text --max-new-tokens=text --seed=text --samples=text --prefix=text --suffix=text --trigger=text --on-truncate=words:keep,trim,extend --max-pixels=text --max-bytes=text --timeout-seconds=text --truncated=words:keep,refuse --background=words:black,gray -f=words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset --format=words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset -o=files --output=files --existing=words:error,skip,overwrite,append,prepend --text-extension=text --report=text --failures=files --max-failures=text --print-job=words:slurm,k8s'
        arguments='pictures*'
        ;;
    'idefics collect')
        commands=''
        flags='--output --format --partial --overwrite --no-overwrite --json --verbose --quiet --help'
        valued='-o=files --output=files -f=words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset --format=words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset'
        arguments='text'
        ;;
    'idefics batch')
        commands=''
        flags='--image-folder --batch-size --model --server --api-key-file --revision --adapter --device --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --yes --system --schema --schema-prompt --no-schema-prompt --regex --choice --ban --temperature --top-p --top-k --repetition-penalty --max-new-tokens --seed --max-pixels --max-bytes --timeout-seconds --truncated --background --output --overwrite --no-overwrite --retry-failed --failures --fail-fast --max-failures --dry-run --verbose --quiet --help'
        valued='--image-folder=folders --batch-size=text -m=models --model=models --server=text --api-key-file=files --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text -s=text --system=text --schema=text --regex=text --choice=text --ban=text --temperature=text --top-p=text --top-k=text --repetition-penalty=text --max-new-tokens=text --seed=text --max-pixels=text --max-bytes=text --timeout-seconds=text --truncated=words:keep,refuse --background=words:black,gray -o=files --output=files --failures=files --max-failures=text'
        arguments='files'
        ;;
    'idefics serve')
        commands=''
        flags='--model --revision --adapter --device --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --yes --host --port --api-key-file --origin --allowed-host --served-name --queue --keep-alive --drain-seconds --max-request-bytes --system --temperature --top-p --top-k --repetition-penalty --max-new-tokens --seed --image-urls --max-images --max-pixels --max-bytes --timeout-seconds --truncated --background --json --dry-run --verbose --quiet --help'
        valued='-m=models --model=models --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text --host=text --port=text --api-key-file=files --origin=text --allowed-host=text --served-name=text --queue=text --keep-alive=words:90s,5m,2h --drain-seconds=text --max-request-bytes=text -s=text --system=text --temperature=text --top-p=text --top-k=text --repetition-penalty=text --max-new-tokens=text --seed=text --image-urls=words:public,off,or,hosts,with,commas --max-images=text --max-pixels=text --max-bytes=text --timeout-seconds=text --truncated=words:keep,refuse --background=words:black,gray'
        arguments=''
        ;;
    'idefics tune')
        commands=''
        flags='--picture --question --answer --images --prompt --lines --learn --validation --most-tokens --skip-bad --train --full --rank --alpha --dropout --dora --learning-rate --epochs --batch-size --replay --seed --keep-features --no-keep-features --checkpointing --no-checkpointing --model --revision --device --dtype --quantization --splitting --no-splitting --longest-edge --offline --online --threads --yes --output --overwrite --no-overwrite --plot --json --dry-run --verbose --quiet --help'
        valued='--picture=text --question=text --answer=text --images=folders -p=text --prompt=text --lines=text --learn=text --validation=text --most-tokens=text --train=text --rank=text --alpha=text --dropout=text --learning-rate=text --epochs=text --batch-size=text --replay=text --seed=text -m=models --model=models --revision=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --longest-edge=text --threads=text -o=folders --output=folders'
        arguments='text'
        ;;
    'idefics doctor')
        commands=''
        flags='--model --server --api-key-file --revision --adapter --device --dtype --quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --check --json --verbose --quiet --help'
        valued='-m=models --model=models --server=text --api-key-file=files --revision=text --adapter=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text'
        arguments=''
        ;;
    'idefics bench')
        commands=''
        flags='--batch-sizes --contexts --new-tokens --rounds --seconds --quick --count --model --shape --layers --vision-layers --keep-weights --revision --device --dtype --quantization --plain-quantization --attention --attn-implementation --splitting --no-splitting --longest-edge --offline --online --threads --json --output --plot --verbose --quiet --help'
        valued='--batch-sizes=text --contexts=text --new-tokens=text --rounds=text --seconds=text --count=text -m=models --model=models --shape=text --layers=text --vision-layers=text --keep-weights=folders --revision=text --device=words:auto,cpu,mps,cuda --dtype=words:auto,bfloat16,float16,float32 --quantization=words:auto,none,8bit,4bit --plain-quantization=text --attention=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --attn-implementation=words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager --longest-edge=text --threads=text -o=files --output=files --plot=files'
        arguments='text*'
        ;;
    'idefics demo')
        commands=''
        flags='--count --seed --json --verbose --quiet --help'
        valued='--count=text --seed=text'
        arguments='folders'
        ;;
    'idefics sessions')
        commands='list show export rm prune'
        flags='--json --quiet --help'
        valued=''
        arguments=''
        ;;
    'idefics sessions list')
        commands=''
        flags='--json --quiet --help'
        valued=''
        arguments=''
        ;;
    'idefics sessions show')
        commands=''
        flags='--json --quiet --help'
        valued=''
        arguments='sessions'
        ;;
    'idefics sessions export')
        commands=''
        flags='--format --output --overwrite --quiet --help'
        valued='-f=words:md,json,html --format=words:md,json,html -o=files --output=files'
        arguments='sessions'
        ;;
    'idefics sessions rm')
        commands=''
        flags='--dry-run --quiet --help'
        valued=''
        arguments='sessions*'
        ;;
    'idefics sessions prune')
        commands=''
        flags='--older-than --keep --json --dry-run --quiet --help'
        valued='--older-than=text --keep=text'
        arguments=''
        ;;
    'idefics models')
        commands='pull path quantize merge'
        flags='--json --verbose --quiet --help'
        valued=''
        arguments=''
        ;;
    'idefics models pull')
        commands=''
        flags='--revision --offline --online --verbose --quiet --help'
        valued='--revision=text'
        arguments='models'
        ;;
    'idefics models path')
        commands=''
        flags='--revision --quiet --help'
        valued='--revision=text'
        arguments='models'
        ;;
    'idefics models quantize')
        commands=''
        flags='--revision --quantization --dtype --offline --online --remove --verbose --quiet --help'
        valued='--revision=text --quantization=words:auto,none,8bit,4bit --dtype=words:auto,bfloat16,float16,float32'
        arguments='models'
        ;;
    'idefics models merge')
        commands=''
        flags='--output --model --revision --offline --online --verbose --quiet --help'
        valued='-o=text --output=text -m=models --model=models --revision=text'
        arguments='text'
        ;;
    'idefics config')
        commands='path'
        flags='--json --help'
        valued=''
        arguments=''
        ;;
    'idefics config path')
        commands=''
        flags='--help'
        valued=''
        arguments=''
        ;;
    'idefics completion')
        commands='show install'
        flags='--help'
        valued=''
        arguments=''
        ;;
    'idefics completion show')
        commands=''
        flags='--quiet --help'
        valued=''
        arguments='words:bash,zsh,fish,powershell'
        ;;
    'idefics completion install')
        commands=''
        flags='--dry-run --quiet --help'
        valued=''
        arguments='words:bash,zsh,fish,powershell'
        ;;
    esac
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
_idefics_answer='import sys; sys.path[:0] = sys.argv[3:]; from idefics_cli.completion.answers import run; run(sys.argv[1:3])'

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
                *.avif | *.AVIF | *.bmp | *.BMP | *.gif | *.GIF | *.heic | *.HEIC | *.heif | *.HEIF | *.jpeg | *.JPEG | *.jpg | *.JPG | *.jp2 | *.JP2 | *.png | *.PNG | *.tif | *.TIF | *.tiff | *.TIFF | *.webp | *.WEBP | *.mp4 | *.MP4 | *.mov | *.MOV | *.m4v | *.M4V | *.mkv | *.MKV | *.avi | *.AVI | *.webm | *.WEBM) ;;
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
