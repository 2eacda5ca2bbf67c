"""Completion in shells: a script for each shell, and a module that lists models and chats.

The scripts hold the names of all commands and options. They call Python only for the names of
models and chats, and then run one module that imports nothing.

Typer has completion of its own, which is not used because it runs the whole program at each press
of TAB. That takes 0.3 s for an option or a model. Our scripts take 4 ms for an option and 18 ms for
a model, where an empty Python takes 12 ms (bash, medians of 21, 2 busy cores). They also offer
pictures and folders before other files, while Typer offers any file.

The price is one script for each shell. A new option needs no work, because
`.ci/make_completions.py` reads the commands and writes the scripts.
"""
