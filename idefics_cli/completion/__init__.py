"""Completion in shells: scripts made from the commands, and fast answers for changing values.

Typer has completion, too, but it runs the whole program at each press of TAB: 0.3 s for an option
or a model (bash, medians of 21, 2 busy cores). Our scripts hold the names of all options, which
takes 4 ms, and call Python only for models and chats, with one module that imports nothing: 18 ms,
where an empty Python takes 12. They also offer pictures and folders before other files, where
Typer offers any file. The price is one script for each shell; a new option needs no work, because
`.ci/make_completions.py` reads the commands.
"""
