"""The page that `idefics` prints without arguments."""

from __future__ import annotations

from idefics_cli import __version__


def overview() -> str:
    """Return the first commands to try."""
    return f"""\
idefics {__version__}: ask about pictures and caption them, on this machine

Try it with the built-in model, which knows only drawn scenes:
  idefics demo pictures                            draw some
  idefics caption pictures -m demo                 caption them
  idefics chat -m demo -i pictures/scene-001.png   talk about one

With a model for photos, which is downloaded at its first use:
  idefics ask "What is in it?" -i photo.jpg
  idefics caption photos/ -r -o captions.jsonl

`idefics models` lists the models, `idefics doctor` shows what runs here, and
`idefics --help` lists all commands."""
