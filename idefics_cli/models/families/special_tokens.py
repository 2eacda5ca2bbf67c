"""Which special tokens are text: markup for places and tables, and which control a chat.

Models for documents, such as Granite-Docling, answer in special tokens (`<loc_12>`, `<otsl>`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from idefics_cli.core.errors import PromptError
from idefics_cli.models.families.protocols import Processor, Tokenizer
from idefics_cli.models.families.spec import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN

# A base model may generate these tokens, but has no chat template that would show that they are
# controls.
_CONTROLS = {IMAGE_TOKEN, FAKE_TOKEN, END_OF_UTTERANCE, "<s>", "</s>", "<unk>", "<pad>"}
# Tokenizers such as SmolLM2's have these marks of code corpora as special tokens.
_CORPUS_MARKS = {
    "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>",
    "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>",
    "<jupyter_output>", "<jupyter_script>", "<empty_output>",
}  # fmt: skip


def find_hidden_ids(processor: Processor, control: Collection[int]) -> frozenset[int] | None:
    """Return the ids of the special tokens that a reply does not show; None means all of them.

    Args:
        processor: Processor of the checkpoint.
        control: Ids of tokens that end a reply, pad it, or stand for pictures.
    """
    tokenizer = processor.tokenizer
    special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    template = str(processor.chat_template or tokenizer.chat_template or "")
    names = {tokenizer.bos_token, *_CONTROLS, *_CORPUS_MARKS}
    hidden = {
        i
        for i, text in special.items()
        if i in control
        or i == tokenizer.unk_token_id
        or text in names
        or (text.startswith("<|") and text.endswith("|>"))
        or text in template
    }
    return frozenset(hidden) if len(hidden) < len(special) else None


def control_pattern(tokenizer: Tokenizer, hidden: Collection[int] | None) -> re.Pattern[str]:
    """Return a pattern of the added tokens that no text of a user may hold.

    Markup is part of the text: prompts point to a place by `<loc_12>` too.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        hidden: Result of `find_hidden_ids`.
    """
    special = tokenizer.added_tokens_decoder
    added = (
        token
        for token, i in tokenizer.get_added_vocab().items()
        if hidden is None or i in hidden or not special[i].special
    )
    # Single characters are left out, because they cannot be broken up. Byte tokens such as `<0x0A>`
    # are ordinary vocabulary, so they are not among these tokens.
    tokens = {token for token in added if len(token) > 1 and not token.isspace()}
    tokens |= {IMAGE_TOKEN, FAKE_TOKEN, END_OF_UTTERANCE, "<s>", "</s>"}
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def find_ban_ids(
    tokenizer: Tokenizer, words: Sequence[str], stop_ids: Collection[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the ids of *words*, as `bad_words_ids` of transformers takes them.

    Tokenizers write a word with a space before it as other tokens. So each word counts as it is,
    and with a space.

    Raises:
        PromptError: If a word is a token that ends a reply.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, f" {word}"):
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(ids) == 1 and ids[0] in stop_ids:
                raise PromptError(
                    f"`{word}` ends an answer, so it cannot be banned",
                    hint="`--max-new-tokens` makes answers longer or shorter",
                )
            if ids:
                found[ids] = None
    return tuple(found)
