# Completion of `idefics` in fish. Made by `idefics completion show fish`; do not edit.

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
    $call $options -c 'import sys; sys.path[:0] = sys.argv[3:]; from idefics_cli.completion.answers import run; run(sys.argv[1:3])' $argv[1] '' $site 2>/dev/null
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
    __idefics_files '\.(?:avif|bmp|gif|heic|heif|jpeg|jpg|jp2|png|tif|tiff|webp|mp4|mov|m4v|mkv|avi|webm)|/'
end

complete -c idefics -f

function __idefics_commands
    switch "$argv"
        case ''
            printf '%s\n' ask chat caption collect batch serve doctor bench demo sessions models config completion
        case 'sessions'
            printf '%s\n' list show export rm prune
        case 'models'
            printf '%s\n' pull path quantize merge
        case 'config'
            printf '%s\n' path
        case 'completion'
            printf '%s\n' show install
    end
end

complete -c idefics -n '__idefics_at' -a ask -d 'Answer one question about pictures'
complete -c idefics -n '__idefics_at' -a chat -d 'Talk about pictures, or answer one question from a pipe'
complete -c idefics -n '__idefics_at' -a caption -d 'Caption pictures, one line each: the path, a tab, the caption'
complete -c idefics -n '__idefics_at' -a collect -d 'Join the outputs of all shards of `idefics caption --shard` into one'
complete -c idefics -n '__idefics_at' -a batch -d 'Answer the requests of a file, one JSON line each'
complete -c idefics -n '__idefics_at' -a serve -d 'Let programs ask the model over HTTP, as they ask OpenAI'
complete -c idefics -n '__idefics_at' -a doctor -d 'Show this machine, what would run on it, and why'
complete -c idefics -n '__idefics_at' -a bench -d 'Measure ours against plain transformers: same weights, same requests, in turns'
complete -c idefics -n '__idefics_at' -a demo -d 'Write sample pictures for the built-in model'
complete -c idefics -n '__idefics_at' -a sessions -d 'List saved chats; show, export and remove them'
complete -c idefics -n '__idefics_at' -a models -d 'List the models: size, download, and how each would run here'
complete -c idefics -n '__idefics_at' -a config -d 'Show every setting with its value and its origin'
complete -c idefics -n '__idefics_at' -a completion -d 'Set up the completion of commands, options, models and pictures with TAB'
complete -c idefics -n '__idefics_at' -s V -l version -d 'Show the version and exit'
complete -c idefics -n '__idefics_at' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at ask' -s i -l image -x -k -a '(__idefics_pictures)' -d 'Path or URL of a picture or video, or `-` for stdin; can be repeated'
complete -c idefics -n '__idefics_at ask' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at ask' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at ask' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at ask' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at ask' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at ask' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at ask' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at ask' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at ask' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at ask' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at ask' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at ask' -s y -l yes -d 'Download a model without asking'
complete -c idefics -n '__idefics_at ask' -s s -l system -x -d 'Instruction before the conversation'
complete -c idefics -n '__idefics_at ask' -l raw -d 'Complete PROMPT without a chat template; each `<image>` in it is the next picture'
complete -c idefics -n '__idefics_at ask' -l example -x -d 'Show the model an example before the question; can be repeated'
complete -c idefics -n '__idefics_at ask' -l examples -r -F -d 'Read examples from JSON lines or CSV with `image` and `text`'
complete -c idefics -n '__idefics_at ask' -l schema -x -d 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'
complete -c idefics -n '__idefics_at ask' -l schema-prompt -l no-schema-prompt -d 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'
complete -c idefics -n '__idefics_at ask' -l regex -x -d 'Answer with a text that matches this regular expression as a whole'
complete -c idefics -n '__idefics_at ask' -l choice -x -d 'Answer with the likeliest of these texts; repeat it for each'
complete -c idefics -n '__idefics_at ask' -l ban -x -d 'Keep a word or a special token out of the answer; can be repeated'
complete -c idefics -n '__idefics_at ask' -l temperature -x -d 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'
complete -c idefics -n '__idefics_at ask' -l top-p -x -d 'Sample from the likeliest tokens up to this total probability. (default: 1)'
complete -c idefics -n '__idefics_at ask' -l top-k -x -d 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'
complete -c idefics -n '__idefics_at ask' -l repetition-penalty -x -d 'Values above 1 discourage repetition. (default: 1)'
complete -c idefics -n '__idefics_at ask' -l max-new-tokens -x -d 'Limit the answer to this number of tokens. (default: 512, captions 256)'
complete -c idefics -n '__idefics_at ask' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at ask' -l max-pixels -x -d 'Refuse pictures with more pixels than this. (default: 100000000)'
complete -c idefics -n '__idefics_at ask' -l max-bytes -x -d 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'
complete -c idefics -n '__idefics_at ask' -l timeout-seconds -x -d 'Longest wait for the next data of a download or a pipe. (default: 20)'
complete -c idefics -n '__idefics_at ask' -l truncated -x -a "keep\t'' refuse\t''" -d 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'
complete -c idefics -n '__idefics_at ask' -l background -x -a "black\t'' gray\t''" -d 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'
complete -c idefics -n '__idefics_at ask' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at ask' -l stream -l no-stream -d 'Show the answer while the model writes it. (default: on a terminal)'
complete -c idefics -n '__idefics_at ask' -l dry-run -d 'Print what would run, and why; `caption` may load the model for this'
complete -c idefics -n '__idefics_at ask' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at ask' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at ask' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at chat' -s i -l image -x -k -a '(__idefics_pictures)' -d 'Path or URL of a picture or video, or `-` for stdin; can be repeated'
complete -c idefics -n '__idefics_at chat' -s c -l continue -d 'Continue the last chat'
complete -c idefics -n '__idefics_at chat' -l session -x -k -a '(__idefics_answers sessions)' -d 'Continue the chat with this name or id; a new name begins a chat'
complete -c idefics -n '__idefics_at chat' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at chat' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at chat' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at chat' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at chat' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at chat' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at chat' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at chat' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at chat' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at chat' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at chat' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at chat' -s y -l yes -d 'Download a model without asking'
complete -c idefics -n '__idefics_at chat' -s s -l system -x -d 'Instruction before the conversation'
complete -c idefics -n '__idefics_at chat' -l temperature -x -d 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'
complete -c idefics -n '__idefics_at chat' -l top-p -x -d 'Sample from the likeliest tokens up to this total probability. (default: 1)'
complete -c idefics -n '__idefics_at chat' -l top-k -x -d 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'
complete -c idefics -n '__idefics_at chat' -l repetition-penalty -x -d 'Values above 1 discourage repetition. (default: 1)'
complete -c idefics -n '__idefics_at chat' -l max-new-tokens -x -d 'Limit the answer to this number of tokens. (default: 512, captions 256)'
complete -c idefics -n '__idefics_at chat' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at chat' -l max-pixels -x -d 'Refuse pictures with more pixels than this. (default: 100000000)'
complete -c idefics -n '__idefics_at chat' -l max-bytes -x -d 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'
complete -c idefics -n '__idefics_at chat' -l timeout-seconds -x -d 'Longest wait for the next data of a download or a pipe. (default: 20)'
complete -c idefics -n '__idefics_at chat' -l truncated -x -a "keep\t'' refuse\t''" -d 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'
complete -c idefics -n '__idefics_at chat' -l background -x -a "black\t'' gray\t''" -d 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'
complete -c idefics -n '__idefics_at chat' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at chat' -l stream -l no-stream -d 'Show the answer while the model writes it. (default: on a terminal)'
complete -c idefics -n '__idefics_at chat' -l plain -l no-plain -d 'Show answers without colours'
complete -c idefics -n '__idefics_at chat' -l preview -l no-preview -d 'Show the pictures of a chat in the terminal. (default: on)'
complete -c idefics -n '__idefics_at chat' -l accessible -l no-accessible -d 'For screen readers: plain lines, no spinner, nothing drawn'
complete -c idefics -n '__idefics_at chat' -l save -l no-save -d 'Store each turn of the chat on disk. (default: on)'
complete -c idefics -n '__idefics_at chat' -l dry-run -d 'Print what would run, and why; `caption` may load the model for this'
complete -c idefics -n '__idefics_at chat' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at chat' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at chat' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at caption' -s r -l recursive -l no-recursive -d 'Include the pictures of subfolders'
complete -c idefics -n '__idefics_at caption' -l follow-links -l no-follow-links -d 'Enter folders outside of the given ones that links lead to'
complete -c idefics -n '__idefics_at caption' -l filelist -r -F -d 'Read a list of pictures: paths, JSON lines or CSV; `-` is stdin'
complete -c idefics -n '__idefics_at caption' -s 0 -l null -d 'The paths of a list end with NUL, as `find -print0` writes them'
complete -c idefics -n '__idefics_at caption' -l shard -x -a "auto\t''" -d 'Caption one of several parts, which other tasks caption at the same time: I/N, counted from 0, or what a scheduler says, such as auto'
complete -c idefics -n '__idefics_at caption' -l batch-size -x -d 'Number of pictures or requests to answer at the same time. (default: chosen by free memory)'
complete -c idefics -n '__idefics_at caption' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at caption' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at caption' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at caption' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at caption' -l devices -x -a "cpu\t'' all\t''" -d 'Share the pictures among several devices, each with a copy of the model: devices with commas, such as cuda:0,cuda:1, or cpu:2 for two workers, or all'
complete -c idefics -n '__idefics_at caption' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at caption' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at caption' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at caption' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at caption' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at caption' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at caption' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at caption' -s y -l yes -d 'Download a model without asking'
complete -c idefics -n '__idefics_at caption' -s p -l prompt -x -d 'Question about each picture; it can have fields such as {stem}. (default: the model\'s caption prompt)'
complete -c idefics -n '__idefics_at caption' -l prompt-file -r -F -d 'Read the prompt from a file; `-` is stdin'
complete -c idefics -n '__idefics_at caption' -l ask -x -d 'Ask a named question; can be repeated'
complete -c idefics -n '__idefics_at caption' -l schema -x -d 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'
complete -c idefics -n '__idefics_at caption' -l schema-prompt -l no-schema-prompt -d 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'
complete -c idefics -n '__idefics_at caption' -l regex -x -d 'Answer with a text that matches this regular expression as a whole'
complete -c idefics -n '__idefics_at caption' -l choice -x -d 'Answer with the likeliest of these texts; repeat it for each'
complete -c idefics -n '__idefics_at caption' -l tags -r -F -d 'Caption with tags of this list, one on each line, and no other words'
complete -c idefics -n '__idefics_at caption' -l example -x -d 'Show the model an example before the question; can be repeated'
complete -c idefics -n '__idefics_at caption' -l examples -r -F -d 'Read examples from JSON lines or CSV with `image` and `text`'
complete -c idefics -n '__idefics_at caption' -l ban -x -d 'Keep a word or a special token out of the answer; can be repeated'
complete -c idefics -n '__idefics_at caption' -l temperature -x -d 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'
complete -c idefics -n '__idefics_at caption' -l top-p -x -d 'Sample from the likeliest tokens up to this total probability. (default: 1)'
complete -c idefics -n '__idefics_at caption' -l top-k -x -d 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'
complete -c idefics -n '__idefics_at caption' -l repetition-penalty -x -d 'Values above 1 discourage repetition. (default: 1)'
complete -c idefics -n '__idefics_at caption' -l max-new-tokens -x -d 'Limit the answer to this number of tokens. (default: 512, captions 256)'
complete -c idefics -n '__idefics_at caption' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at caption' -l samples -x -d 'Write this many captions of each picture, each sampled anew. (default: 1)'
complete -c idefics -n '__idefics_at caption' -l prefix -x -d 'Put this text before each caption, unchanged'
complete -c idefics -n '__idefics_at caption' -l suffix -x -d 'Put this text after each caption, unchanged'
complete -c idefics -n '__idefics_at caption' -l trigger -x -d 'Begin each caption with these words and a comma, unless it has them already'
complete -c idefics -n '__idefics_at caption' -l strip-preamble -l no-strip-preamble -d 'Remove beginnings such as `The image shows` from captions; English only'
complete -c idefics -n '__idefics_at caption' -l on-truncate -x -a "keep\t'' trim\t'' extend\t''" -d 'Leave a cut caption, remove its unfinished sentence, or continue it: keep, trim or extend. (default: keep)'
complete -c idefics -n '__idefics_at caption' -l max-pixels -x -d 'Refuse pictures with more pixels than this. (default: 100000000)'
complete -c idefics -n '__idefics_at caption' -l max-bytes -x -d 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'
complete -c idefics -n '__idefics_at caption' -l timeout-seconds -x -d 'Longest wait for the next data of a download or a pipe. (default: 20)'
complete -c idefics -n '__idefics_at caption' -l truncated -x -a "keep\t'' refuse\t''" -d 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'
complete -c idefics -n '__idefics_at caption' -l background -x -a "black\t'' gray\t''" -d 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'
complete -c idefics -n '__idefics_at caption' -s f -l format -x -a "tsv\t'' jsonl\t'' csv\t'' csvbom\t'' parquet\t'' txt\t'' xmp\t''" -d 'How captions are written, in one file or in one beside each picture: tsv, jsonl, csv, csvbom, parquet, txt or xmp. (default: by the extension of the output)'
complete -c idefics -n '__idefics_at caption' -s o -l output -r -F -d 'Write the captions to this file, or to this folder if each picture gets a file. (default: stdout, the same as `-`)'
complete -c idefics -n '__idefics_at caption' -l existing -x -a "error\t'' skip\t'' overwrite\t'' append\t'' prepend\t''" -d 'What to do with existing captions: error, skip, overwrite, append or prepend. (default: error)'
complete -c idefics -n '__idefics_at caption' -l overwrite -l no-overwrite -d 'Replace what earlier runs wrote'
complete -c idefics -n '__idefics_at caption' -l embed -d 'Write each caption into its picture, as metadata; needs exiftool'
complete -c idefics -n '__idefics_at caption' -l full-names -l no-full-names -d 'Name text files `a.jpg.txt`, so that `a.png` gets a file of its own. (default: only with xmp)'
complete -c idefics -n '__idefics_at caption' -l text-extension -x -d 'Extension of text files, `.txt` if not given'
complete -c idefics -n '__idefics_at caption' -l report -x -d 'Write an HTML page that shows all pictures with their captions'
complete -c idefics -n '__idefics_at caption' -l retry-failed -d 'Try again only what failed before'
complete -c idefics -n '__idefics_at caption' -l failures -r -F -d 'List the failed pictures in this file, for `--filelist`. (default: beside the output)'
complete -c idefics -n '__idefics_at caption' -l fail-fast -d 'Stop the run at the first failure'
complete -c idefics -n '__idefics_at caption' -l max-failures -x -d 'Stop the run after more failures than this. (default: never)'
complete -c idefics -n '__idefics_at caption' -l dry-run -d 'Print what would run, and why; `caption` may load the model for this'
complete -c idefics -n '__idefics_at caption' -l print-job -x -a "slurm\t'' k8s\t''" -d 'Print a script that runs all shards as a job array: slurm or k8s'
complete -c idefics -n '__idefics_at caption' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at caption' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at caption' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at caption' -k -a '(__idefics_pictures)'

complete -c idefics -n '__idefics_at collect' -s o -l output -r -F -d 'Write the rows to this file, not to OUTPUT; its extension may name another format. (default: stdout, the same as `-`)'
complete -c idefics -n '__idefics_at collect' -s f -l format -x -a "tsv\t'' jsonl\t'' csv\t'' csvbom\t'' parquet\t'' txt\t'' xmp\t''" -d 'How captions are written, in one file or in one beside each picture: tsv, jsonl, csv, csvbom, parquet, txt or xmp. (default: by the extension of the output)'
complete -c idefics -n '__idefics_at collect' -l partial -d 'Write what is there, even if shards are not complete; the exit code is then 3'
complete -c idefics -n '__idefics_at collect' -l overwrite -l no-overwrite -d 'Replace what earlier runs wrote'
complete -c idefics -n '__idefics_at collect' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at collect' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at collect' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at collect' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at batch' -l image-folder -x -a '(__fish_complete_directories)' -d 'Folder of the pictures that requests name by relative paths (default: that of REQUESTS)'
complete -c idefics -n '__idefics_at batch' -l batch-size -x -d 'Number of pictures or requests to answer at the same time. (default: chosen by free memory)'
complete -c idefics -n '__idefics_at batch' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at batch' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at batch' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at batch' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at batch' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at batch' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at batch' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at batch' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at batch' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at batch' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at batch' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at batch' -s y -l yes -d 'Download a model without asking'
complete -c idefics -n '__idefics_at batch' -s s -l system -x -d 'Instruction before the conversation'
complete -c idefics -n '__idefics_at batch' -l schema -x -d 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'
complete -c idefics -n '__idefics_at batch' -l schema-prompt -l no-schema-prompt -d 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'
complete -c idefics -n '__idefics_at batch' -l regex -x -d 'Answer with a text that matches this regular expression as a whole'
complete -c idefics -n '__idefics_at batch' -l choice -x -d 'Answer with the likeliest of these texts; repeat it for each'
complete -c idefics -n '__idefics_at batch' -l ban -x -d 'Keep a word or a special token out of the answer; can be repeated'
complete -c idefics -n '__idefics_at batch' -l temperature -x -d 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'
complete -c idefics -n '__idefics_at batch' -l top-p -x -d 'Sample from the likeliest tokens up to this total probability. (default: 1)'
complete -c idefics -n '__idefics_at batch' -l top-k -x -d 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'
complete -c idefics -n '__idefics_at batch' -l repetition-penalty -x -d 'Values above 1 discourage repetition. (default: 1)'
complete -c idefics -n '__idefics_at batch' -l max-new-tokens -x -d 'Limit the answer to this number of tokens. (default: 512, captions 256)'
complete -c idefics -n '__idefics_at batch' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at batch' -l max-pixels -x -d 'Refuse pictures with more pixels than this. (default: 100000000)'
complete -c idefics -n '__idefics_at batch' -l max-bytes -x -d 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'
complete -c idefics -n '__idefics_at batch' -l timeout-seconds -x -d 'Longest wait for the next data of a download or a pipe. (default: 20)'
complete -c idefics -n '__idefics_at batch' -l truncated -x -a "keep\t'' refuse\t''" -d 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'
complete -c idefics -n '__idefics_at batch' -l background -x -a "black\t'' gray\t''" -d 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'
complete -c idefics -n '__idefics_at batch' -s o -l output -r -F -d 'Write the answers to this file, as JSON lines. (default: stdout, the same as `-`)'
complete -c idefics -n '__idefics_at batch' -l overwrite -l no-overwrite -d 'Replace what earlier runs wrote'
complete -c idefics -n '__idefics_at batch' -l retry-failed -d 'Try again only what failed before'
complete -c idefics -n '__idefics_at batch' -l failures -r -F -d 'Copy the requests that failed to this file. (default: beside the output)'
complete -c idefics -n '__idefics_at batch' -l fail-fast -d 'Stop the run at the first failure'
complete -c idefics -n '__idefics_at batch' -l max-failures -x -d 'Stop the run after more failures than this. (default: never)'
complete -c idefics -n '__idefics_at batch' -l dry-run -d 'Print what would run, and why; `caption` may load the model for this'
complete -c idefics -n '__idefics_at batch' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at batch' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at batch' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at batch' -F

complete -c idefics -n '__idefics_at serve' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at serve' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at serve' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at serve' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at serve' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at serve' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at serve' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at serve' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at serve' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at serve' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at serve' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at serve' -s y -l yes -d 'Download a model without asking'
complete -c idefics -n '__idefics_at serve' -l host -x -d 'Address to listen at; any other than this machine\'s own needs a key. (default: 127.0.0.1)'
complete -c idefics -n '__idefics_at serve' -l port -x -d 'Port to listen at; 0 takes any free one. (default: 8000)'
complete -c idefics -n '__idefics_at serve' -l api-key-file -r -F -d 'File with the key that requests must have; IDEFICS_API_KEY is a key itself'
complete -c idefics -n '__idefics_at serve' -l origin -x -d 'Origins of web pages that may ask, such as https://a.example, with commas'
complete -c idefics -n '__idefics_at serve' -l allowed-host -x -d 'Further names of this server in the Host header, with commas'
complete -c idefics -n '__idefics_at serve' -l served-name -x -d 'Name of the model in answers. (default: that of the model)'
complete -c idefics -n '__idefics_at serve' -l queue -x -d 'Number of requests that may wait; more are refused. (default: 64)'
complete -c idefics -n '__idefics_at serve' -l keep-alive -x -a "90s\t'' 5m\t'' 2h\t''" -d 'Unload the model after this time without requests; -1 is never: a time such as 90s, 5m or 2h. (default: 5m)'
complete -c idefics -n '__idefics_at serve' -l drain-seconds -x -d 'Time for running requests when the server ends. (default: 30)'
complete -c idefics -n '__idefics_at serve' -l max-request-bytes -x -d 'Largest number of bytes of a request. (default: 67108864)'
complete -c idefics -n '__idefics_at serve' -s s -l system -x -d 'Instruction before the conversation'
complete -c idefics -n '__idefics_at serve' -l temperature -x -d 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'
complete -c idefics -n '__idefics_at serve' -l top-p -x -d 'Sample from the likeliest tokens up to this total probability. (default: 1)'
complete -c idefics -n '__idefics_at serve' -l top-k -x -d 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'
complete -c idefics -n '__idefics_at serve' -l repetition-penalty -x -d 'Values above 1 discourage repetition. (default: 1)'
complete -c idefics -n '__idefics_at serve' -l max-new-tokens -x -d 'Limit the answer to this number of tokens. (default: 512, captions 256)'
complete -c idefics -n '__idefics_at serve' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at serve' -l image-urls -x -a "public\t'' off\t'' or\t'' hosts\t'' with\t'' commas\t''" -d 'Download pictures from public addresses, from these hosts, or not at all: public, off or hosts with commas. (default: public)'
complete -c idefics -n '__idefics_at serve' -l max-images -x -d 'Largest number of pictures of a request. (default: 16)'
complete -c idefics -n '__idefics_at serve' -l max-pixels -x -d 'Refuse pictures with more pixels than this. (default: 100000000)'
complete -c idefics -n '__idefics_at serve' -l max-bytes -x -d 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'
complete -c idefics -n '__idefics_at serve' -l timeout-seconds -x -d 'Longest wait for the next data of a download or a pipe. (default: 20)'
complete -c idefics -n '__idefics_at serve' -l truncated -x -a "keep\t'' refuse\t''" -d 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'
complete -c idefics -n '__idefics_at serve' -l background -x -a "black\t'' gray\t''" -d 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'
complete -c idefics -n '__idefics_at serve' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at serve' -l dry-run -d 'Print what would run, and why; `caption` may load the model for this'
complete -c idefics -n '__idefics_at serve' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at serve' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at serve' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at doctor' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at doctor' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at doctor' -l adapter -x -d 'LoRA adapter: a folder or a Hub id. Without a model, its base model'
complete -c idefics -n '__idefics_at doctor' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at doctor' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at doctor' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at doctor' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at doctor' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at doctor' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at doctor' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at doctor' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at doctor' -l check -d 'Compute known answers in every way that this machine has, and compare'
complete -c idefics -n '__idefics_at doctor' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at doctor' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at doctor' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at doctor' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at bench' -l batch-sizes -x -d 'Numbers of requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)'
complete -c idefics -n '__idefics_at bench' -l contexts -x -d 'Lengths of the prompts in tokens. (default: 800,2000)'
complete -c idefics -n '__idefics_at bench' -l new-tokens -x -d 'Length of an answer in tokens. (default: 24)'
complete -c idefics -n '__idefics_at bench' -l rounds -x -d 'Most rounds for a figure. (default: 5)'
complete -c idefics -n '__idefics_at bench' -l seconds -x -d 'Begin no more rounds for a figure after X seconds. (default: 30; 1.5 for demo)'
complete -c idefics -n '__idefics_at bench' -l quick -d 'Measure fewer figures in fewer rounds'
complete -c idefics -n '__idefics_at bench' -l count -x -d 'Number of sample pictures. (default: 8)'
complete -c idefics -n '__idefics_at bench' -s m -l model -x -k -a '(__idefics_models)' -d 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at bench' -l shape -x -d 'Measure random weights of the shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, idefics2-8b or idefics3-8b; no download'
complete -c idefics -n '__idefics_at bench' -l layers -x -d 'Cut the shape to N text layers and N vision layers'
complete -c idefics -n '__idefics_at bench' -l vision-layers -x -d 'Cut the shape to N vision layers'
complete -c idefics -n '__idefics_at bench' -l keep-weights -x -a '(__fish_complete_directories)' -d 'Keep the random weights in this folder and use them again'
complete -c idefics -n '__idefics_at bench' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at bench' -l device -x -a "auto\t'' cpu\t'' mps\t'' cuda\t''" -d 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'
complete -c idefics -n '__idefics_at bench' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at bench' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at bench' -l plain-quantization -x -d 'Quantization of plain transformers, if it differs from ours: none, 8bit or 4bit'
complete -c idefics -n '__idefics_at bench' -l attention -l attn-implementation -x -a "auto\t'' flash_attention_2\t'' flash_attention_3\t'' flash_attention_4\t'' sdpa\t'' eager\t''" -d 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'
complete -c idefics -n '__idefics_at bench' -l splitting -l no-splitting -d 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'
complete -c idefics -n '__idefics_at bench' -l longest-edge -x -d 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'
complete -c idefics -n '__idefics_at bench' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at bench' -l threads -x -d 'Number of CPU threads. (default: chosen for this machine)'
complete -c idefics -n '__idefics_at bench' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at bench' -s o -l output -r -F -d 'Write the figures of all rounds to this JSON file'
complete -c idefics -n '__idefics_at bench' -l plot -r -F -d 'Draw the ratios into this PNG file'
complete -c idefics -n '__idefics_at bench' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at bench' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at bench' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at demo' -l count -x -d 'Number of sample pictures. (default: 8)'
complete -c idefics -n '__idefics_at demo' -l seed -x -d 'Make random choices repeatable'
complete -c idefics -n '__idefics_at demo' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at demo' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at demo' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at demo' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at demo' -a '(__fish_complete_directories)'

complete -c idefics -n '__idefics_at sessions' -a list -d 'List the sessions, the last one first'
complete -c idefics -n '__idefics_at sessions' -a show -d 'Print a session'
complete -c idefics -n '__idefics_at sessions' -a export -d 'Write a session with its pictures as one file: Markdown, JSON, or a page for a browser'
complete -c idefics -n '__idefics_at sessions' -a rm -d 'Remove sessions, and the copies of pictures that no other session has'
complete -c idefics -n '__idefics_at sessions' -a prune -d 'Remove old sessions; named and open sessions stay'
complete -c idefics -n '__idefics_at sessions' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at sessions' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at sessions list' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at sessions list' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions list' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at sessions show' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at sessions show' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions show' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at sessions show' -k -a '(__idefics_answers sessions)'

complete -c idefics -n '__idefics_at sessions export' -s f -l format -x -a "md\t'' json\t'' html\t''" -d 'md, json or html (default: by the name of FILE, else md)'
complete -c idefics -n '__idefics_at sessions export' -s o -l output -r -F -d 'Write to FILE, not to stdout'
complete -c idefics -n '__idefics_at sessions export' -l overwrite -d 'Replace FILE if it exists'
complete -c idefics -n '__idefics_at sessions export' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions export' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at sessions export' -k -a '(__idefics_answers sessions)'

complete -c idefics -n '__idefics_at sessions rm' -l dry-run -d 'Show what would be removed, and remove nothing'
complete -c idefics -n '__idefics_at sessions rm' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions rm' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at sessions rm' -k -a '(__idefics_answers sessions)'

complete -c idefics -n '__idefics_at sessions prune' -l older-than -x -d 'Remove sessions that did not change for this time: 12h, 30d or 8w'
complete -c idefics -n '__idefics_at sessions prune' -l keep -x -d 'Keep the last N sessions'
complete -c idefics -n '__idefics_at sessions prune' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at sessions prune' -l dry-run -d 'Show what would be removed, and remove nothing'
complete -c idefics -n '__idefics_at sessions prune' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at sessions prune' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at models' -a pull -d 'Download a model into the Hugging Face cache, and print its folder'
complete -c idefics -n '__idefics_at models' -a path -d 'Print the folder of a downloaded model'
complete -c idefics -n '__idefics_at models' -a quantize -d 'Quantize a model for the CPU and store the weights, so that it starts in seconds'
complete -c idefics -n '__idefics_at models' -a merge -d 'Write a model with an adapter in its weights, which needs no adapter any more'
complete -c idefics -n '__idefics_at models' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at models' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at models' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at models' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at models pull' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at models pull' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at models pull' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at models pull' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at models pull' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at models pull' -k -a '(__idefics_models)'

complete -c idefics -n '__idefics_at models path' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at models path' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at models path' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at models path' -k -a '(__idefics_models)'

complete -c idefics -n '__idefics_at models quantize' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at models quantize' -l quantization -x -a "auto\t'' none\t'' 8bit\t'' 4bit\t''" -d 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'
complete -c idefics -n '__idefics_at models quantize' -l dtype -x -a "auto\t'' bfloat16\t'' float16\t'' float32\t''" -d 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'
complete -c idefics -n '__idefics_at models quantize' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at models quantize' -l remove -d 'Remove the stored weights of this model'
complete -c idefics -n '__idefics_at models quantize' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at models quantize' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at models quantize' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at models quantize' -k -a '(__idefics_models)'

complete -c idefics -n '__idefics_at models merge' -s o -l output -x -d 'Write the model to this new folder. (default: stdout, the same as `-`)'
complete -c idefics -n '__idefics_at models merge' -s m -l model -x -k -a '(__idefics_models)' -d 'The model of the adapter, if its files do not name it. (default: smolvlm-500m)'
complete -c idefics -n '__idefics_at models merge' -l revision -x -d 'Branch, tag or commit of a Hub repository'
complete -c idefics -n '__idefics_at models merge' -l offline -l online -d 'Do not use the network'
complete -c idefics -n '__idefics_at models merge' -s v -l verbose -d 'Also show the messages of the libraries'
complete -c idefics -n '__idefics_at models merge' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at models merge' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at config' -a path -d 'Print the path of config.toml, which need not exist'
complete -c idefics -n '__idefics_at config' -l json -d 'Print JSON'
complete -c idefics -n '__idefics_at config' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at config path' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at completion' -a show -d 'Print the script for a shell'
complete -c idefics -n '__idefics_at completion' -a install -d 'Write the script into your folder of completions, and print the next step'
complete -c idefics -n '__idefics_at completion' -s h -l help -d 'Show this message and exit'

complete -c idefics -n '__idefics_at completion show' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at completion show' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at completion show' -a "bash\t'' zsh\t'' fish\t'' powershell\t''"

complete -c idefics -n '__idefics_at completion install' -l dry-run -d 'Print the path of the file, and do not write it'
complete -c idefics -n '__idefics_at completion install' -s q -l quiet -d 'Show errors only'
complete -c idefics -n '__idefics_at completion install' -s h -l help -d 'Show this message and exit'
complete -c idefics -n '__idefics_at completion install' -a "bash\t'' zsh\t'' fish\t'' powershell\t''"
