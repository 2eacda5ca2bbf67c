"""Prompts that no model can use, and text on stdin."""

from __future__ import annotations

from idefics_cli.core.errors import InputError, PromptError, UsageError
from tests.support.bad_calls.call import Call
from tests.support.bad_calls.folder import PICTURE

EMPTY = "`idefics ask 'What is in the picture?' -i PICTURE`"
BASE = "complete with `idefics ask --raw '<image>In this image,' -i PICTURE`"
MARKS = "write `<image>` where each picture belongs, and `-i` for each"

# fmt: off
PROMPTS = (
    Call("ask", PromptError, "the prompt is empty", EMPTY),
    Call("ask ''", PromptError, "the prompt is empty", EMPTY),
    Call("ask '  '", PromptError, "the prompt is empty", EMPTY),
    Call("ask x", PromptError, "stdin holds binary data, not text",
        "`-i -` takes a picture from stdin", stdin=PICTURE),
    Call("ask '' -i good.png", PromptError, "the prompt is empty", EMPTY, stdin=b" \n\n"),
    Call("caption good.png -m demo -p '<image> and <image>'", PromptError,
        "the prompt has 2 `<image>`, and a caption is about one picture",
        "write one `<image>`, or none: then the picture comes first"),
    Call("caption good.png -m demo -p 'From [1] to [5]?'", PromptError,
        "the prompt has `[5]`, and there is no picture 5", r"`\[5]` is text"),
    Call("ask 'Is [2] red?' -i good.png", PromptError,
        "the prompt has `[2]`, and there is no picture 2", r"`\[2]` is text"),
    Call("ask x --ban ''", UsageError, "`--ban` needs a word", "`--ban large`"),
    Call("ask x -m demo --ban '<end_of_utterance>'", PromptError,
        "`<end_of_utterance>` ends an answer, so it cannot be banned",
        "`--max-new-tokens` makes answers longer or shorter"),
    Call("ask x -i good.png --example good.png", UsageError,
        "`--example` needs a picture and a text, not `good.png`",
        "`--example photo.jpg='A red kite.'`"),
    Call("ask x -i good.png --example good.png=", UsageError,
        "the example `good.png` has no text", "`--example photo.jpg='A red kite.'`"),
    Call("ask x --example good.png=y", UsageError,
        "an example shows one picture, and the question has 0", "give one `-i` with `--example`"),
    Call("ask x -i good.png --example 'https://x.org/a?b=c=y'", UsageError,
        "it is not clear where the address ends in `https://x.org/a?b=c=y`",
        "put it into a list: `--examples FILE.jsonl`"),
    Call("ask x -i good.png --examples missing.jsonl", InputError,
        "no such list of examples: `missing.jsonl`",
        'each line is like `{"image": "a.jpg", "text": "A red kite."}`'),
    Call("caption good.png -m demo --ask a=b --ask c=d --example good.png=y", UsageError,
        "an example answers one question, and there are 2",
        "run `idefics caption` once for each question"),
    Call("ask --raw '<image> <image>' -i good.png", PromptError,
        "the prompt has 2 `<image>`, and 1 picture is given", MARKS),
    Call("ask --raw x -i good.png -i cut.png", PromptError,
        "the prompt has 0 `<image>`, and 2 pictures are given", MARKS),
    Call("ask --raw '<image>'", PromptError,
        "the prompt has 1 `<image>`, and 0 pictures are given", MARKS),
    Call("ask --raw '<image>' -i good.png -s 'Be kind.'", UsageError,
        "--system does not apply to a raw prompt", "write the instruction into PROMPT"),
    Call("ask x -m models/base -i good.png", PromptError,
        "`models/base` is a base model: it completes texts and does not chat", BASE),
    Call("chat -m demo", PromptError, "the prompt is empty", EMPTY),
    Call("chat", PromptError, "the prompt is empty", EMPTY, stdin=b"\n"),
    Call("chat", PromptError, "stdin holds binary data, not text",
        "`-i -` takes a picture from stdin", stdin=b"a\x00b"),
    Call("chat", PromptError, "the text on stdin is not UTF-8 (byte 4)",
        "convert it, for example with `iconv -t utf-8`; `-i -` takes a picture", stdin=b"caf\xe9"),
    Call("chat", PromptError, "the text on stdin is longer than 4,000,000 bytes",
        "pipe a part of it; no model has such a long context", stdin=b"a " * 2000001),
    Call("chat -m models/base", PromptError,
        "`models/base` is a base model: it completes texts and does not chat", BASE,
        stdin=b"What?"),
)
# fmt: on
