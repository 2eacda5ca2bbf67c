"""Tags: replies that are words of a list, separated by commas."""

from __future__ import annotations

import re

from idefics_cli.core.errors import InputError
from idefics_cli.core.types import Constraint
from idefics_cli.engine.schema.form import ReplyForm
from idefics_cli.engine.schema.grammar import check_constraint
from idefics_cli.engine.schema.text_files import read_text

SEPARATOR = ", "
# The default limit of tokens would cut off a reply with more tags.
_MOST_TAGS = 20
# The prompt names all tags of a list that has at most this many. Longer lists are not named,
# because each tag takes a few tokens of the prompt.
_MOST_TOLD = 60


def tags_form(file: str, *, explains: bool = True) -> ReplyForm:
    """Return the form of replies that are up to 20 tags of the list *file*, each once.

    Args:
        file: Path of a text file with a tag on each line, or several with commas between them.
        explains: Whether the prompt tells the model what to answer.

    Raises:
        InputError: If the list cannot be read or is empty.
        UsageError: If llguidance is not installed.
    """
    parts = re.split(r"[,\n]", read_text(file, "list of tags"))
    tags = list(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not tags:
        raise InputError(f"the list of tags `{file}` is empty", hint="one tag on each line")
    any_tag = f"({'|'.join(map(re.escape, tags))})"
    pattern = f"{any_tag}({SEPARATOR}{any_tag}){{0,{min(len(tags), _MOST_TAGS) - 1}}}"
    constraint = Constraint("regex", pattern)
    check_constraint(constraint)
    told = "Answer only with tags, separated by commas."
    if len(tags) <= _MOST_TOLD:
        told = f"Answer only with tags of this list, separated by commas: {SEPARATOR.join(tags)}"
    return ReplyForm(constraint, (), told if explains else "", separator=SEPARATOR)
