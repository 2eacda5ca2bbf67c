# Completion of `idefics` in PowerShell. Made by `idefics completion show powershell`.

Register-ArgumentCompleter -Native -CommandName idefics -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $table = @{
        'idefics' = @{
            Commands = [ordered]@{ 'ask' = 'Answer one question about pictures'; 'chat' = 'Talk about pictures, or answer one question from a pipe'; 'caption' = 'Caption pictures, one line each: the path, a tab, the caption'; 'collect' = 'Join the outputs of all shards of `idefics caption --shard` into one'; 'batch' = 'Answer the requests of a file, one JSON line each'; 'serve' = 'Let programs ask the model over HTTP, as they ask OpenAI'; 'tune' = 'Train a model on your own pictures with captions or conversations'; 'doctor' = 'Show this machine, what would run on it, and why'; 'bench' = 'Measure ours against plain transformers: same weights, same requests, in turns'; 'demo' = 'Write sample pictures for the built-in model'; 'sessions' = 'List saved chats; show, export and remove them'; 'models' = 'List the models: size, download, and how each would run here'; 'config' = 'Show every setting with its value and its origin'; 'completion' = 'Set up the completion of commands, options, models and pictures with TAB' }
            Flags = [ordered]@{ '--version' = 'Show the version and exit'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics ask' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--image' = 'Path or URL of a picture or video, or `-` for stdin; can be repeated'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--server' = 'Use the model of this server, such as http://127.0.0.1:8000; `local` uses none'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--system' = 'Instruction before the conversation'; '--raw' = 'Complete PROMPT without a chat template; each `<image>` in it is the next picture'; '--example' = 'Show the model an example before the question; can be repeated'; '--examples' = 'Read examples from JSON lines or CSV with `image` and `text`'; '--schema' = 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'; '--schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--no-schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--regex' = 'Answer with a text that matches this regular expression as a whole'; '--choice' = 'Answer with the likeliest of these texts; repeat it for each'; '--ban' = 'Keep a word or a special token out of the answer; can be repeated'; '--temperature' = 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from the likeliest tokens up to this total probability. (default: 1)'; '--top-k' = 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'; '--repetition-penalty' = 'Values above 1 discourage repetition. (default: 1)'; '--max-new-tokens' = 'Limit the answer to this number of tokens. (default: 512, captions 256)'; '--seed' = 'Make random choices repeatable'; '--max-pixels' = 'Refuse pictures with more pixels than this. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'; '--timeout-seconds' = 'Longest wait for the next data of a download or a pipe. (default: 20)'; '--truncated' = 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'; '--background' = 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'; '--json' = 'Print JSON'; '--stream' = 'Show the answer while the model writes it. (default: on a terminal)'; '--no-stream' = 'Show the answer while the model writes it. (default: on a terminal)'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-i' = 'pictures'; '--image' = 'pictures'; '-m' = 'models'; '--model' = 'models'; '--server' = 'text'; '--api-key-file' = 'files'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '-s' = 'text'; '--system' = 'text'; '--example' = 'text'; '--examples' = 'files'; '--schema' = 'text'; '--regex' = 'text'; '--choice' = 'text'; '--ban' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '--truncated' = 'words:keep,refuse'; '--background' = 'words:black,gray' }
            Arguments = @('text')
            Repeated = ''
        }
        'idefics chat' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--image' = 'Path or URL of a picture or video, or `-` for stdin; can be repeated'; '--continue' = 'Continue the last chat'; '--session' = 'Continue the chat with this name or id; a new name begins a chat'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--server' = 'Use the model of this server, such as http://127.0.0.1:8000; `local` uses none'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--system' = 'Instruction before the conversation'; '--temperature' = 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from the likeliest tokens up to this total probability. (default: 1)'; '--top-k' = 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'; '--repetition-penalty' = 'Values above 1 discourage repetition. (default: 1)'; '--max-new-tokens' = 'Limit the answer to this number of tokens. (default: 512, captions 256)'; '--seed' = 'Make random choices repeatable'; '--max-pixels' = 'Refuse pictures with more pixels than this. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'; '--timeout-seconds' = 'Longest wait for the next data of a download or a pipe. (default: 20)'; '--truncated' = 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'; '--background' = 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'; '--json' = 'Print JSON'; '--stream' = 'Show the answer while the model writes it. (default: on a terminal)'; '--no-stream' = 'Show the answer while the model writes it. (default: on a terminal)'; '--plain' = 'Show answers without colours'; '--no-plain' = 'Show answers without colours'; '--preview' = 'Show the pictures of a chat in the terminal. (default: on)'; '--no-preview' = 'Show the pictures of a chat in the terminal. (default: on)'; '--accessible' = 'For screen readers: plain lines, no spinner, nothing drawn'; '--no-accessible' = 'For screen readers: plain lines, no spinner, nothing drawn'; '--save' = 'Store each turn of the chat on disk. (default: on)'; '--no-save' = 'Store each turn of the chat on disk. (default: on)'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-i' = 'pictures'; '--image' = 'pictures'; '--session' = 'sessions'; '-m' = 'models'; '--model' = 'models'; '--server' = 'text'; '--api-key-file' = 'files'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '-s' = 'text'; '--system' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '--truncated' = 'words:keep,refuse'; '--background' = 'words:black,gray' }
            Arguments = @()
            Repeated = ''
        }
        'idefics caption' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--recursive' = 'Include the pictures of subfolders'; '--no-recursive' = 'Include the pictures of subfolders'; '--follow-links' = 'Enter folders outside of the given ones that links lead to'; '--no-follow-links' = 'Enter folders outside of the given ones that links lead to'; '--filelist' = 'Read a list of pictures: paths, JSON lines or CSV; `-` is stdin'; '--null' = 'The paths of a list end with NUL, as `find -print0` writes them'; '--shard' = 'Caption one part of the pictures; other tasks caption the other parts: I/N, counted from 0, or what a scheduler says, such as auto'; '--batch-size' = 'Number of pictures or requests to answer at the same time. (default: chosen by free memory)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--server' = 'Use the model of this server, such as http://127.0.0.1:8000; `local` uses none'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--devices' = 'Share the pictures among several devices, each with a copy of the model: devices with commas, such as cuda:0,cuda:1, or cpu:2 for two workers, or all'; '--ray' = 'Share the pictures among the nodes of this Ray cluster: auto for the cluster of this machine, or HOST:PORT'; '--workers' = 'Number of workers on the cluster of `--ray`. (default: as many as fit now)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--prompt' = 'Question about each picture; it can have fields such as {stem}. (default: the model''s caption prompt)'; '--prompt-file' = 'Read the prompt from a file; `-` is stdin'; '--ask' = 'Ask a named question; can be repeated'; '--schema' = 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'; '--schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--no-schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--regex' = 'Answer with a text that matches this regular expression as a whole'; '--choice' = 'Answer with the likeliest of these texts; repeat it for each'; '--tags' = 'Caption with tags of this list, one on each line, and no other words'; '--example' = 'Show the model an example before the question; can be repeated'; '--examples' = 'Read examples from JSON lines or CSV with `image` and `text`'; '--ban' = 'Keep a word or a special token out of the answer; can be repeated'; '--temperature' = 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from the likeliest tokens up to this total probability. (default: 1)'; '--top-k' = 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'; '--repetition-penalty' = 'Values above 1 discourage repetition. (default: 1)'; '--max-new-tokens' = 'Limit the answer to this number of tokens. (default: 512, captions 256)'; '--seed' = 'Make random choices repeatable'; '--samples' = 'Write this many captions of each picture, each sampled anew. (default: 1)'; '--prefix' = 'Put this text before each caption, unchanged'; '--suffix' = 'Put this text after each caption, unchanged'; '--trigger' = 'Begin each caption with these words and a comma, unless it has them already'; '--strip-preamble' = 'Remove beginnings such as `The image shows` from captions; English only'; '--no-strip-preamble' = 'Remove beginnings such as `The image shows` from captions; English only'; '--on-truncate' = 'Leave a cut caption, remove its unfinished sentence, or continue it: keep, trim or extend. (default: keep)'; '--max-pixels' = 'Refuse pictures with more pixels than this. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'; '--timeout-seconds' = 'Longest wait for the next data of a download or a pipe. (default: 20)'; '--truncated' = 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'; '--background' = 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'; '--format' = 'How captions are written, in one file or in one beside each picture: tsv, jsonl, csv, csvbom, parquet, txt, xmp or webdataset. (default: by the extension of the output)'; '--output' = 'Write the captions to this file, or to this folder if each picture gets a file. (default: stdout, the same as `-`)'; '--existing' = 'What to do with existing captions: error, skip, overwrite, append or prepend. (default: error)'; '--overwrite' = 'Replace what earlier runs wrote'; '--no-overwrite' = 'Replace what earlier runs wrote'; '--embed' = 'Write each caption into its picture, as metadata; needs exiftool'; '--full-names' = 'Name text files `a.jpg.txt`, so that `a.png` gets a file of its own. (default: only with xmp)'; '--no-full-names' = 'Name text files `a.jpg.txt`, so that `a.png` gets a file of its own. (default: only with xmp)'; '--text-extension' = 'Extension of text files, `.txt` if not given'; '--report' = 'Write an HTML page that shows all pictures with their captions'; '--retry-failed' = 'Try again only what failed before'; '--failures' = 'List the failed pictures in this file, for `--filelist`. (default: beside the output)'; '--fail-fast' = 'Stop the run at the first failure'; '--max-failures' = 'Stop the run after more failures than this. (default: never)'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--print-job' = 'Print a script that runs all shards as a job array: slurm or k8s'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--filelist' = 'files'; '--shard' = 'words:auto'; '--batch-size' = 'text'; '-m' = 'models'; '--model' = 'models'; '--server' = 'text'; '--api-key-file' = 'files'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--devices' = 'words:cpu,all'; '--ray' = 'words:auto'; '--workers' = 'text'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '-p' = 'text'; '--prompt' = 'text'; '--prompt-file' = 'files'; '--ask' = 'text'; '--schema' = 'text'; '--regex' = 'text'; '--choice' = 'text'; '--tags' = 'files'; '--example' = 'text'; '--examples' = 'files'; '--ban' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--samples' = 'text'; '--prefix' = 'text'; '--suffix' = 'text'; '--trigger' = 'text'; '--on-truncate' = 'words:keep,trim,extend'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '--truncated' = 'words:keep,refuse'; '--background' = 'words:black,gray'; '-f' = 'words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset'; '--format' = 'words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset'; '-o' = 'files'; '--output' = 'files'; '--existing' = 'words:error,skip,overwrite,append,prepend'; '--text-extension' = 'text'; '--report' = 'text'; '--failures' = 'files'; '--max-failures' = 'text'; '--print-job' = 'words:slurm,k8s' }
            Arguments = @('pictures')
            Repeated = 'pictures'
        }
        'idefics collect' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--output' = 'Write the rows to this file, in the format of its extension. (default: OUTPUT)'; '--format' = 'How captions are written, in one file or in one beside each picture: tsv, jsonl, csv, csvbom, parquet, txt, xmp or webdataset. (default: by the extension of the output)'; '--partial' = 'Write what is there, even if shards are not complete; the exit code is then 3'; '--overwrite' = 'Replace what earlier runs wrote'; '--no-overwrite' = 'Replace what earlier runs wrote'; '--json' = 'Print JSON'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-o' = 'files'; '--output' = 'files'; '-f' = 'words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset'; '--format' = 'words:tsv,jsonl,csv,csvbom,parquet,txt,xmp,webdataset' }
            Arguments = @('text')
            Repeated = ''
        }
        'idefics batch' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--image-folder' = 'Folder of the pictures that requests name by relative paths (default: that of REQUESTS)'; '--batch-size' = 'Number of pictures or requests to answer at the same time. (default: chosen by free memory)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--server' = 'Use the model of this server, such as http://127.0.0.1:8000; `local` uses none'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--system' = 'Instruction before the conversation'; '--schema' = 'Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`'; '--schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--no-schema-prompt' = 'Tell the model the fields of `--schema`, or the tags, at the end of the prompt. (default: on)'; '--regex' = 'Answer with a text that matches this regular expression as a whole'; '--choice' = 'Answer with the likeliest of these texts; repeat it for each'; '--ban' = 'Keep a word or a special token out of the answer; can be repeated'; '--temperature' = 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from the likeliest tokens up to this total probability. (default: 1)'; '--top-k' = 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'; '--repetition-penalty' = 'Values above 1 discourage repetition. (default: 1)'; '--max-new-tokens' = 'Limit the answer to this number of tokens. (default: 512, captions 256)'; '--seed' = 'Make random choices repeatable'; '--max-pixels' = 'Refuse pictures with more pixels than this. (default: 100000000)'; '--max-bytes' = 'Refuse downloads and piped pictures with more bytes than this. (default: 100000000)'; '--timeout-seconds' = 'Longest wait for the next data of a download or a pipe. (default: 20)'; '--truncated' = 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'; '--background' = 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'; '--output' = 'Write the answers to this file, as JSON lines. (default: stdout, the same as `-`)'; '--overwrite' = 'Replace what earlier runs wrote'; '--no-overwrite' = 'Replace what earlier runs wrote'; '--retry-failed' = 'Try again only what failed before'; '--failures' = 'Copy the requests that failed to this file. (default: beside the output)'; '--fail-fast' = 'Stop the run at the first failure'; '--max-failures' = 'Stop the run after more failures than this. (default: never)'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--image-folder' = 'folders'; '--batch-size' = 'text'; '-m' = 'models'; '--model' = 'models'; '--server' = 'text'; '--api-key-file' = 'files'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '-s' = 'text'; '--system' = 'text'; '--schema' = 'text'; '--regex' = 'text'; '--choice' = 'text'; '--ban' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '--truncated' = 'words:keep,refuse'; '--background' = 'words:black,gray'; '-o' = 'files'; '--output' = 'files'; '--failures' = 'files'; '--max-failures' = 'text' }
            Arguments = @('files')
            Repeated = ''
        }
        'idefics serve' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--host' = 'Address to listen at. If other machines can reach it, a key is needed. (default: 127.0.0.1)'; '--port' = 'Port to listen at; 0 takes any free one. (default: 8000)'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--origin' = 'Web pages that may send requests: origins like https://a.example, with commas'; '--allowed-host' = 'Further names that a Host header may have for this server, with commas'; '--served-name' = 'Name of the model in answers. (default: that of the model)'; '--queue' = 'Number of requests that may wait; more are refused. (default: 64)'; '--keep-alive' = 'Unload the model after this time without requests; -1 is never: a time such as 90s, 5m or 2h. (default: 5m)'; '--drain-seconds' = 'Time for running requests when the server ends. (default: 30)'; '--max-request-bytes' = 'Largest number of bytes of a request. (default: 67108864)'; '--system' = 'Instruction before the conversation'; '--temperature' = 'Randomness of the answer; 0 always takes the likeliest token. (default: 0)'; '--top-p' = 'Sample from the likeliest tokens up to this total probability. (default: 1)'; '--top-k' = 'Sample from this many of the likeliest tokens; 0 is all. (default: 0)'; '--repetition-penalty' = 'Values above 1 discourage repetition. (default: 1)'; '--max-new-tokens' = 'Limit the answer to this number of tokens. (default: 512, captions 256)'; '--seed' = 'Make random choices repeatable'; '--image-urls' = 'Download pictures from public addresses, from these hosts, or not at all: public, off or hosts with commas. (default: public)'; '--max-images' = 'Largest number of pictures of a request. (default: 16)'; '--max-pixels' = 'Refuse pictures with more pixels than this. (default: 50000000)'; '--max-bytes' = 'Refuse pictures with more bytes than this. (default: 20000000)'; '--timeout-seconds' = 'Longest time of a whole download. (default: 10)'; '--truncated' = 'Accept or refuse pictures of which the end is missing: keep or refuse. (default: refuse)'; '--background' = 'Background of the transparent parts of pictures: a CSS colour such as black, gray or #1a2b3c. (default: white)'; '--json' = 'Print JSON'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '--host' = 'text'; '--port' = 'text'; '--api-key-file' = 'files'; '--origin' = 'text'; '--allowed-host' = 'text'; '--served-name' = 'text'; '--queue' = 'text'; '--keep-alive' = 'words:90s,5m,2h'; '--drain-seconds' = 'text'; '--max-request-bytes' = 'text'; '-s' = 'text'; '--system' = 'text'; '--temperature' = 'text'; '--top-p' = 'text'; '--top-k' = 'text'; '--repetition-penalty' = 'text'; '--max-new-tokens' = 'text'; '--seed' = 'text'; '--image-urls' = 'words:public,off,or,hosts,with,commas'; '--max-images' = 'text'; '--max-pixels' = 'text'; '--max-bytes' = 'text'; '--timeout-seconds' = 'text'; '--truncated' = 'words:keep,refuse'; '--background' = 'words:black,gray' }
            Arguments = @()
            Repeated = ''
        }
        'idefics tune' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--picture' = 'Column with the picture of a row'; '--question' = 'Column with the question of a row'; '--answer' = 'Column with the answer of a row'; '--images' = 'Folder to which the paths of pictures are relative'; '--prompt' = 'Question about each picture with a caption, unless its row has one; it can have fields such as {stem}. Later captions ask it, too. (default: the model''s caption prompt)'; '--lines' = 'Lines of a text file that are captions: first, all or random. (default: first)'; '--learn' = 'Answers of a conversation that are learned: all or last. (default: all)'; '--validation' = 'Share of the pictures, or other data, to try the model on. (default: 0.05)'; '--most-tokens' = 'Leave out rows with more tokens. (default: the context of the model, at most 4096)'; '--skip-bad' = 'Train without the rows that cannot be used'; '--train' = 'Parts of the model that are trained: text, connector, vision. (default: text)'; '--full' = 'Train all weights of these parts, and write a whole model'; '--rank' = 'Width of the LoRA matrices. (default: 16)'; '--alpha' = 'Numerator of their scale. (default: 2 x rank)'; '--dropout' = 'Share of their inputs that is dropped. (default: 0.05)'; '--dora' = 'Train lengths of the weights, too (DoRA)'; '--learning-rate' = 'Highest learning rate. (default: by the size of the model)'; '--epochs' = 'How often each row is learned. (default: 3; more for tiny models)'; '--batch-size' = 'Number of rows of a step. (default: 16; 8 for tiny models)'; '--replay' = 'Number of other questions about each picture. The model answers them before the training and learns these answers too, so that it keeps its skills. (default: 1 for tiny models, else 0)'; '--seed' = 'Make random choices repeatable'; '--keep-features' = 'Encode each picture once only, if `vision` and `connector` are not trained'; '--no-keep-features' = 'Encode each picture once only, if `vision` and `connector` are not trained'; '--checkpointing' = 'Compute activations twice, to save memory. (default: on, but not for tiny models)'; '--no-checkpointing' = 'Compute activations twice, to save memory. (default: on, but not for tiny models)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--yes' = 'Download a model without asking'; '--output' = 'Write the adapter to this folder'; '--overwrite' = 'Replace what earlier runs wrote'; '--no-overwrite' = 'Replace what earlier runs wrote'; '--plot' = 'Draw the loss to loss.svg in the folder'; '--json' = 'Print JSON'; '--dry-run' = 'Print what would run, and why; `caption` may load the model for this'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--picture' = 'text'; '--question' = 'text'; '--answer' = 'text'; '--images' = 'folders'; '-p' = 'text'; '--prompt' = 'text'; '--lines' = 'text'; '--learn' = 'text'; '--validation' = 'text'; '--most-tokens' = 'text'; '--train' = 'text'; '--rank' = 'text'; '--alpha' = 'text'; '--dropout' = 'text'; '--learning-rate' = 'text'; '--epochs' = 'text'; '--batch-size' = 'text'; '--replay' = 'text'; '--seed' = 'text'; '-m' = 'models'; '--model' = 'models'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--longest-edge' = 'text'; '--threads' = 'text'; '-o' = 'folders'; '--output' = 'folders' }
            Arguments = @('text')
            Repeated = ''
        }
        'idefics doctor' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--server' = 'Use the model of this server, such as http://127.0.0.1:8000; `local` uses none'; '--api-key-file' = 'File that holds the key of the server. IDEFICS_API_KEY holds the key itself'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--adapter' = 'LoRA adapter: a folder or a Hub id. Without a model, its base model'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--check' = 'Compute known answers in every way that this machine has, and compare'; '--json' = 'Print JSON'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-m' = 'models'; '--model' = 'models'; '--server' = 'text'; '--api-key-file' = 'files'; '--revision' = 'text'; '--adapter' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text' }
            Arguments = @()
            Repeated = ''
        }
        'idefics bench' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--batch-sizes' = 'Numbers of requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)'; '--contexts' = 'Lengths of the prompts in tokens. (default: 800,2000)'; '--new-tokens' = 'Length of an answer in tokens. (default: 24)'; '--rounds' = 'Most rounds for a figure. (default: 5)'; '--seconds' = 'Begin no more rounds for a figure after X seconds. (default: 30; 1.5 for demo)'; '--quick' = 'Measure fewer figures in fewer rounds'; '--count' = 'Number of sample pictures. (default: 8)'; '--model' = 'Name from `idefics models`, Hub id `owner/name` or local folder. (default: smolvlm-500m)'; '--shape' = 'Measure random weights of the shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, idefics2-8b or idefics3-8b; no download'; '--layers' = 'Cut the shape to N text layers and N vision layers'; '--vision-layers' = 'Cut the shape to N vision layers'; '--keep-weights' = 'Keep the random weights in this folder and use them again'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--device' = 'Where the model runs: auto, cpu, mps, cuda or cuda:N. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--plain-quantization' = 'Quantization of plain transformers, if it differs from ours: none, 8bit or 4bit'; '--attention' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--attn-implementation' = 'Attention implementation: auto, flash_attention_2, flash_attention_3, flash_attention_4, sdpa or eager. (default: auto)'; '--splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--no-splitting' = 'Cut large pictures into tiles, for more detail at a higher cost. (default: as the model was trained)'; '--longest-edge' = 'Scale pictures to this many pixels on the longer side (some models only shrink). (default: as the model was trained)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--threads' = 'Number of CPU threads. (default: chosen for this machine)'; '--json' = 'Print JSON'; '--output' = 'Write the figures of all rounds to this JSON file'; '--plot' = 'Draw the ratios into this PNG file'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--batch-sizes' = 'text'; '--contexts' = 'text'; '--new-tokens' = 'text'; '--rounds' = 'text'; '--seconds' = 'text'; '--count' = 'text'; '-m' = 'models'; '--model' = 'models'; '--shape' = 'text'; '--layers' = 'text'; '--vision-layers' = 'text'; '--keep-weights' = 'folders'; '--revision' = 'text'; '--device' = 'words:auto,cpu,mps,cuda'; '--dtype' = 'words:auto,bfloat16,float16,float32'; '--quantization' = 'words:auto,none,8bit,4bit'; '--plain-quantization' = 'text'; '--attention' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--attn-implementation' = 'words:auto,flash_attention_2,flash_attention_3,flash_attention_4,sdpa,eager'; '--longest-edge' = 'text'; '--threads' = 'text'; '-o' = 'files'; '--output' = 'files'; '--plot' = 'files' }
            Arguments = @('text')
            Repeated = 'text'
        }
        'idefics demo' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--count' = 'Number of sample pictures. (default: 8)'; '--seed' = 'Make random choices repeatable'; '--json' = 'Print JSON'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--count' = 'text'; '--seed' = 'text' }
            Arguments = @('folders')
            Repeated = ''
        }
        'idefics sessions' = @{
            Commands = [ordered]@{ 'list' = 'List the sessions, the last one first'; 'show' = 'Print a session'; 'export' = 'Write a session with its pictures as one file: Markdown, JSON, or a page for a browser'; 'rm' = 'Remove sessions, and the copies of pictures that no other session has'; 'prune' = 'Remove old sessions; named and open sessions stay' }
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
            Flags = [ordered]@{ '--dry-run' = 'Show what would be removed, and remove nothing'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @('sessions')
            Repeated = 'sessions'
        }
        'idefics sessions prune' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--older-than' = 'Remove sessions that did not change for this time: 12h, 30d or 8w'; '--keep' = 'Keep the last N sessions'; '--json' = 'Print JSON'; '--dry-run' = 'Show what would be removed, and remove nothing'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--older-than' = 'text'; '--keep' = 'text' }
            Arguments = @()
            Repeated = ''
        }
        'idefics models' = @{
            Commands = [ordered]@{ 'pull' = 'Download a model into the Hugging Face cache, and print its folder'; 'path' = 'Print the folder of a downloaded model'; 'quantize' = 'Quantize a model for the CPU and store the weights, so that it starts in seconds'; 'merge' = 'Write a model with an adapter in its weights, which needs no adapter any more' }
            Flags = [ordered]@{ '--json' = 'Print JSON'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{}
            Arguments = @()
            Repeated = ''
        }
        'idefics models pull' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--revision' = 'Branch, tag or commit of a Hub repository'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
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
            Flags = [ordered]@{ '--revision' = 'Branch, tag or commit of a Hub repository'; '--quantization' = 'Compress the weights to save memory: auto, none, 8bit or 4bit. (default: auto)'; '--dtype' = 'Number format of the weights: auto, bfloat16, float16 or float32. (default: auto)'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--remove' = 'Remove the stored weights of this model'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '--revision' = 'text'; '--quantization' = 'words:auto,none,8bit,4bit'; '--dtype' = 'words:auto,bfloat16,float16,float32' }
            Arguments = @('models')
            Repeated = ''
        }
        'idefics models merge' = @{
            Commands = [ordered]@{}
            Flags = [ordered]@{ '--output' = 'Write the model to this new folder'; '--model' = 'The model of the adapter, if its files do not name it. (default: smolvlm-500m)'; '--revision' = 'Branch, tag or commit of a Hub repository'; '--offline' = 'Do not use the network'; '--online' = 'Do not use the network'; '--verbose' = 'Also show the messages of the libraries'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
            Valued = @{ '-o' = 'text'; '--output' = 'text'; '-m' = 'models'; '--model' = 'models'; '--revision' = 'text' }
            Arguments = @('text')
            Repeated = ''
        }
        'idefics config' = @{
            Commands = [ordered]@{ 'path' = 'Print the path of config.toml, which need not exist' }
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
            Commands = [ordered]@{ 'show' = 'Print the script for a shell'; 'install' = 'Write the script into your folder of completions, and print the next step' }
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
            Flags = [ordered]@{ '--dry-run' = 'Print the path of the file, and do not write it'; '--quiet' = 'Show errors only'; '--help' = 'Show this message and exit' }
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
        '^pictures$' { Show-Files '\.(avif|bmp|gif|heic|heif|jpeg|jpg|jp2|png|tif|tiff|webp|mp4|mov|m4v|mkv|avi|webm)$' }
        '^files$' { Show-Files '.' }
        '^folders$' { Show-Files '$^' }
    }
}
