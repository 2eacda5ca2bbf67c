# Completion of `idefics` in PowerShell. Made by `idefics completion show powershell`.

Register-ArgumentCompleter -Native -CommandName idefics -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $table = @{
        'idefics' = @{
            Commands = [ordered]@{ 'ask' = 'Answer one question about pictures'; 'chat' = 'Talk about pictures; or answer a question that is piped in'; 'caption' = 'Caption pictures, one line each: the path, a tab, the caption'; 'doctor' = 'Show what this machine has, what would run on it, and why'; 'bench' = 'Measure ours against plain transformers: same weights, same requests, in turns'; 'demo' = 'Write sample pictures that the built-in model knows to talk about'; 'sessions' = 'List the chats that are kept; show, export and remove them'; 'models' = 'List the models: what each takes, whether it is downloaded, how it would run here'; 'config' = 'Show every setting, its value and where it comes from'; 'completion' = 'Complete commands, options, models and pictures with TAB' }
            Flags = [ordered]@{ '--version' = 'Show the version and exit'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics ask' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--image' = 'Path, URL or `-` for the picture on stdin; may be given several times'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--threads' = 'CPU threads. (default: by the machine)'; '--yes' = 'Download a model without asking'; '--system' = 'Instruction that precedes the conversation'; '--raw' = 'Complete PROMPT as it is; each `<image>` in it is a picture, in order'; '--temperature' = '0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from this share of the probability. (default: 1)'; '--top-k' = 'Sample from this many tokens; 0 from all. (default: 0)'; '--repetition-penalty' = 'Above 1 discourages repeating. (default: 1)'; '--max-new-tokens' = 'Cut the answer after so many tokens. (default: 512, captions 256)'; '--seed' = 'Makes random choices repeatable'; '--max-pixels' = 'Refuse pictures with more pixels. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures above this size. (default: 100000000)'; '--timeout-seconds' = 'Longest silence of a download or of piped text. (default: 20)'; '--json' = 'Print JSON'; '--stream' = 'Show the answer while it is written. (default: on a terminal)'; '--no-stream' = 'Show the answer while it is written. (default: on a terminal)'; '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-i' = 'pictures'; '--image' = 'pictures'; '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--threads' = 'text'; '-s' = 'text'; '--system' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text' }
            Arguments = @('text')
            Repeated = ''
        }
        'idefics chat' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--image' = 'Path, URL or `-` for the picture on stdin; may be given several times'; '--continue' = 'Go on with the last chat'; '--session' = 'Go on with the chat of this name or id; a new name begins one'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--threads' = 'CPU threads. (default: by the machine)'; '--yes' = 'Download a model without asking'; '--system' = 'Instruction that precedes the conversation'; '--temperature' = '0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from this share of the probability. (default: 1)'; '--top-k' = 'Sample from this many tokens; 0 from all. (default: 0)'; '--repetition-penalty' = 'Above 1 discourages repeating. (default: 1)'; '--max-new-tokens' = 'Cut the answer after so many tokens. (default: 512, captions 256)'; '--seed' = 'Makes random choices repeatable'; '--max-pixels' = 'Refuse pictures with more pixels. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures above this size. (default: 100000000)'; '--timeout-seconds' = 'Longest silence of a download or of piped text. (default: 20)'; '--json' = 'Print JSON'; '--stream' = 'Show the answer while it is written. (default: on a terminal)'; '--no-stream' = 'Show the answer while it is written. (default: on a terminal)'; '--plain' = 'Show answers without colours and line breaks'; '--no-plain' = 'Show answers without colours and line breaks'; '--preview' = 'Draw the pictures of a chat in the terminal. (default: on)'; '--no-preview' = 'Draw the pictures of a chat in the terminal. (default: on)'; '--accessible' = 'For screen readers: plain lines, no spinner, nothing drawn or redrawn'; '--no-accessible' = 'For screen readers: plain lines, no spinner, nothing drawn or redrawn'; '--save' = 'Keep the chat on disk, turn by turn. (default: on)'; '--no-save' = 'Keep the chat on disk, turn by turn. (default: on)'; '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-i' = 'pictures'; '--image' = 'pictures'; '--session' = 'sessions'; '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--threads' = 'text'; '-s' = 'text'; '--system' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text' }
            Arguments = @()
            Repeated = ''
        }
        'idefics caption' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--recursive' = 'Also take the pictures of sub-folders'; '--no-recursive' = 'Also take the pictures of sub-folders'; '--filelist' = 'Take the pictures of a list: paths, JSON lines or CSV; `-` is stdin'; '--null' = 'The paths of lists end with NUL, as of `find -print0`'; '--batch-size' = 'Pictures captioned at the same time. (default: by free memory)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--threads' = 'CPU threads. (default: by the machine)'; '--yes' = 'Download a model without asking'; '--prompt' = 'What to ask about each picture; may have fields, as {stem}. (default: the model''s caption prompt)'; '--prompt-file' = 'Read the prompt from a file; `-` is stdin'; '--ask' = 'Ask a named question; may be given several times'; '--temperature' = '0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from this share of the probability. (default: 1)'; '--top-k' = 'Sample from this many tokens; 0 from all. (default: 0)'; '--repetition-penalty' = 'Above 1 discourages repeating. (default: 1)'; '--max-new-tokens' = 'Cut the answer after so many tokens. (default: 512, captions 256)'; '--seed' = 'Makes random choices repeatable'; '--prefix' = 'Put this before each caption, exactly as it is'; '--suffix' = 'Put this behind each caption, exactly as it is'; '--trigger' = 'Begin each caption with these words and a comma, unless it has them'; '--strip-preamble' = 'Leave `The image shows` and the like, in English, out of captions'; '--no-strip-preamble' = 'Leave `The image shows` and the like, in English, out of captions'; '--on-truncate' = 'What becomes of a caption that was cut: stay, lose its broken sentence, or go on: keep, trim or extend. (default: keep)'; '--max-pixels' = 'Refuse pictures with more pixels. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures above this size. (default: 100000000)'; '--timeout-seconds' = 'Longest silence of a download or of piped text. (default: 20)'; '--format' = 'How captions are written; txt is a file beside each picture: tsv, jsonl, csv, parquet or txt. (default: by the extension of the output, else tsv)'; '--output' = 'Write the captions to this file, or to this folder for txt. (default: stdout, as does `-`)'; '--existing' = 'What becomes of captions that are there already: error, skip, overwrite, append or prepend. (default: error)'; '--overwrite' = 'Short for `--existing overwrite`'; '--no-overwrite' = 'Short for `--existing overwrite`'; '--full-names' = 'Name a caption file `a.jpg.txt`, so that `a.png` has its own'; '--no-full-names' = 'Name a caption file `a.jpg.txt`, so that `a.png` has its own'; '--report' = 'Write a page that shows all pictures with their captions'; '--retry-failed' = 'Take the pictures that failed before, and no others'; '--failures' = 'List the pictures that failed in this file, for `--filelist`. (default: beside the output)'; '--fail-fast' = 'End the run when a picture fails'; '--max-failures' = 'End the run when more pictures than this fail. (default: never)'; '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--filelist' = 'files'; '--batch-size' = 'text'; '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--threads' = 'text'; '-p' = 'text'; '--prompt' = 'text'; '--prompt-file' = 'files'; '--ask' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--prefix' = 'text'; '--suffix' = 'text'; '--trigger' = 'text'; '--on-truncate' = 'words:keep,trim,extend'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '-f' = 'words:tsv,jsonl,csv,parquet,txt'; '--format' = 'words:tsv,jsonl,csv,parquet,txt'; '-o' = 'files'; '--output' = 'files'; '--existing' = 'words:error,skip,overwrite,append,prepend'; '--report' = 'text'; '--failures' = 'files'; '--max-failures' = 'text' }
            Arguments = @('pictures')
            Repeated = 'pictures'
        }
        'idefics doctor' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--threads' = 'CPU threads. (default: by the machine)'; '--json' = 'Print JSON'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--threads' = 'text' }
            Arguments = @()
            Repeated = ''
        }
        'idefics bench' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--batch-sizes' = 'Requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)'; '--contexts' = 'Prompt tokens. (default: 800,2000)'; '--new-tokens' = 'Length of an answer. (default: 24)'; '--rounds' = 'Most rounds of a figure. (default: 5)'; '--seconds' = 'Begin no further round of a figure after so long. (default: 30; 1.5 for demo)'; '--quick' = 'Fewer figures and rounds'; '--count' = 'How many sample pictures to write. (default: 8)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--shape' = 'Random weights of the real shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, idefics2-8b or idefics3-8b; no download'; '--layers' = 'Cut the shape to so many text layers, and as many vision layers'; '--vision-layers' = 'Cut the shape to so many vision layers'; '--keep-weights' = 'Keep the random weights here and use them again'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--plain-quantization' = 'Quantize plain transformers otherwise than ours: none, 8bit or 4bit'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles: sees more, costs more. (default: as the model was trained)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--threads' = 'CPU threads. (default: by the machine)'; '--json' = 'Print JSON'; '--output' = 'Write the figures of all rounds to this JSON file'; '--plot' = 'Draw the ratios into this PNG file'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--batch-sizes' = 'text'; '--contexts' = 'text'; '--new-tokens' = 'text'; '--rounds' = 'text'; '--seconds' = 'text'; '--count' = 'text'; '-m' = 'models'; '--model' = 'models'; '--shape' = 'text'; '--layers' = 'text'; '--vision-layers' = 'text'; '--keep-weights' = 'folders'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--plain-quantization' = 'text'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--threads' = 'text'; '-o' = 'files'; '--output' = 'files'; '--plot' = 'files' }
            Arguments = @('text')
            Repeated = 'text'
        }
        'idefics demo' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--count' = 'How many sample pictures to write. (default: 8)'; '--seed' = 'Makes random choices repeatable'; '--json' = 'Print JSON'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--count' = 'text'; '--seed' = 'text' }
            Arguments = @('folders')
            Repeated = ''
        }
        'idefics sessions' = @{
            Commands = [ordered]@{ 'list' = 'List the sessions, the last one first'; 'show' = 'Print a session'; 'export' = 'Write a session with its pictures as one file: Markdown, JSON, or a page for a browser'; 'rm' = 'Remove sessions, and the copies of pictures that no other session has'; 'prune' = 'Remove old sessions; those with a name, or open just now, stay' }
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics sessions list' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics sessions show' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @('sessions')
            Repeated = ''
        }
        'idefics sessions export' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--format' = 'md, json or html (default: by the name of FILE, else md)'; '--output' = 'Write to FILE, not to stdout'; '--overwrite' = 'Replace FILE if it exists'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-f' = 'words:md,json,html'; '--format' = 'words:md,json,html'; '-o' = 'files'; '--output' = 'files' }
            Arguments = @('sessions')
            Repeated = ''
        }
        'idefics sessions rm' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @('sessions')
            Repeated = 'sessions'
        }
        'idefics sessions prune' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--older-than' = 'Remove those unchanged for so long: 12h, 30d or 8w'; '--keep' = 'Never remove the last N'; '--json' = 'Print JSON'; '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--older-than' = 'text'; '--keep' = 'text' }
            Arguments = @()
            Repeated = ''
        }
        'idefics models' = @{
            Commands = [ordered]@{ 'pull' = 'Download a model into the Hugging Face cache, and print its folder'; 'path' = 'Print the folder of a downloaded model'; 'quantize' = 'Make small weights for the CPU once and keep them, so that a start takes seconds' }
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics models pull' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--revision' = 'Branch, tag or commit of a Hub repository'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--revision' = 'text' }
            Arguments = @('models')
            Repeated = ''
        }
        'idefics models path' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--revision' = 'Branch, tag or commit of a Hub repository'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--revision' = 'text' }
            Arguments = @('models')
            Repeated = ''
        }
        'idefics models quantize' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--revision' = 'Branch, tag or commit of a Hub repository'; '--quantization' = 'Smaller weights for less memory: auto, none, 8bit or 4bit. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--offline' = 'Never reach for the network'; '--online' = 'Never reach for the network'; '--remove' = 'Remove what is kept of this model instead'; '--verbose' = 'Show the messages of the libraries too'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--revision' = 'text'; '--quantization' = 'words:auto,none,8bit,4bit'; '--dtype' = 'words:auto,bfloat16,float16,float32' }
            Arguments = @('models')
            Repeated = ''
        }
        'idefics config' = @{
            Commands = [ordered]@{ 'path' = 'Print the path of config.toml, whether or not it is there' }
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics config path' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics completion' = @{
            Commands = [ordered]@{ 'show' = 'Print the script for a shell'; 'install' = 'Write the script into your folder for it, and say what is left to do' }
            Flags = [ordered]@{ '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics completion show' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @('words:bash,zsh,fish,powershell')
            Repeated = ''
        }
        'idefics completion install' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--dry-run' = 'Print what would run, and why; of the model only `caption` loads one that is here'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @('words:bash,zsh,fish,powershell')
            Repeated = ''
        }
    }

    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { $_.Extent.Text })
    $path = 'idefics'
    $option = $null
    $ended = $false
    $position = 0
    foreach ($word in ($words | Select-Object -Skip 1)) {
        $command = $table[$path]
        if ($option) { $option = $null }
        elseif ($ended -or $word -notlike '-?*') {
            if (-not $ended -and $command.Commands.Contains($word)) { $path = "$path $word" }
            else { $position++ }
        }
        elseif ($word -eq '--') { $ended = $true }
        elseif ($command.Valued.ContainsKey($word)) { $option = $word }
    }
    $command = $table[$path]

    $prefix = ''
    $start = $wordToComplete
    if ($option) { $kind = $command.Valued[$option] }
    elseif ($start -match '^(-[^=]*)=(.*)$' -and $command.Valued.ContainsKey($Matches[1])) {
        $kind = $command.Valued[$Matches[1]]
        $prefix = $Matches[1] + '='
        $start = $Matches[2]
    }
    elseif ($start -like '-*' -and -not $ended) { $kind = 'flags' }
    elseif ($command.Commands.Count) { $kind = 'commands' }
    elseif ($position -lt $command.Arguments.Count) { $kind = $command.Arguments[$position] }
    else { $kind = $command.Repeated }
    $start = $start.Trim("'", '"')

    function Show-Value($value, $note) {
        if (-not $value.StartsWith($start, [StringComparison]::OrdinalIgnoreCase)) { return }
        $text = $value
        if ($text -match "[\s'``]") { $text = "'" + $text.Replace("'", "''") + "'" }
        if (-not $note) { $note = $value }
        [System.Management.Automation.CompletionResult]::new(
            $prefix + $text, $value, 'ParameterValue', $note)
    }

    function Show-Files($accept) {
        $found = @([System.Management.Automation.CompletionCompleters]::CompleteFilename($start))
        $chosen = @($found | Where-Object {
            $_.ResultType -eq 'ProviderContainer' -or $_.ListItemText -match $accept })
        if (-not $chosen.Count -and $accept -ne '$^') { $chosen = $found }
        $chosen | ForEach-Object {
            [System.Management.Automation.CompletionResult]::new(
                $prefix + $_.CompletionText, $_.ListItemText, $_.ResultType, $_.ToolTip) }
    }

    switch -Regex ($kind) {
        '^flags$' {
            foreach ($row in $command.Flags.GetEnumerator()) { Show-Value $row.Key $row.Value }
        }
        '^commands$' {
            foreach ($row in $command.Commands.GetEnumerator()) { Show-Value $row.Key $row.Value }
        }
        '^words:' { foreach ($word in $kind.Substring(6).Split(',')) { Show-Value $word '' } }
        '^(models|sessions)$' {
            $name = $words[0].Trim("'", '"')
            $shown = @(& $name __complete $kind $start 2>$null | ForEach-Object {
                $value, $note = $_ -split "`t", 2
                Show-Value $value $note })
            if ($kind -eq 'models' -and -not $shown.Count) { Show-Files '$^' } else { $shown }
        }
        '^pictures$' { Show-Files '\.(avif|bmp|gif|heic|heif|jpeg|jpg|jp2|png|tif|tiff|webp)$' }
        '^files$' { Show-Files '.' }
        '^folders$' { Show-Files '$^' }
    }
}
