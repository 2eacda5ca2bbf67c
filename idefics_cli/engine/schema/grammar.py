"""Constraints as grammars of llguidance, which is imported only when there is a constraint."""

from __future__ import annotations

import json

from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Constraint, Mode

INSTALL_HINT = "pip install 'idefics-cli[schema]'"
"""The fix for a missing llguidance."""

# The grammar allows only the white space that `json.dumps` writes. With free white space, models
# write spaces up to the limit of tokens.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def check_constraint(constraint: Constraint) -> None:
    """Check that *constraint* can be compiled; this needs no model.

    Raises:
        UsageError: If llguidance is not installed, or cannot compile the constraint.
    """
    grammar = compiled_grammar(constraint, "chat")
    from llguidance import LLMatcher

    is_bad, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_bad:
        raise not_usable(constraint, messages[0])


def compiled_grammar(constraint: Constraint, mode: Mode) -> str:
    """Return the grammar of *constraint* in the form that `LLMatcher` takes.

    Raises:
        UsageError: If llguidance is not installed, or the expression is not one.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise UsageError(
            "schemas and patterns for answers need the package llguidance", hint=INSTALL_HINT
        ) from error
    try:
        return LLMatcher.grammar_from_lark(lark_grammar(constraint, mode))
    except ValueError as error:
        raise not_usable(constraint, str(error)) from error


def lark_grammar(constraint: Constraint, mode: Mode) -> str:
    """Return *constraint* as a grammar in the Lark format of llguidance."""
    # After `Assistant:`, models begin with a space, which most often is part of the first token. If
    # the grammar did not allow the space, models would have to begin with a token that they never
    # use after `Assistant:`.
    space = '" " ' if mode == "chat" else ""
    if constraint.kind == "schema":
        schema = {**json.loads(constraint.text), "x-guidance": _JSON_STYLE}
        return f"start: {space}body\nbody: %json {json.dumps(schema)}"
    from llguidance import regex_to_lark

    return f"start: {space}BODY\nBODY: /{regex_to_lark(constraint.text, use_ascii='d')}/"


def not_usable(constraint: Constraint, message: str) -> UsageError:
    """Return the error for a *constraint* that llguidance refuses with *message*."""
    # *message* begins with a position in a grammar and ends with the text of the grammar. The user
    # did not write this grammar, so only the reason is taken from *message*.
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = lines[0] if lines else "no reason is given"
    for start in ("failed to compile JSON schema: ", "regex parse error:"):
        if start in reason:
            reason = reason.partition(start)[2]
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (causes[0] if causes else reason).strip()[:300]
    if "oneOf constraints are not supported" in reason:
        reason = "cases of a `oneOf` may both fit; write `anyOf`"
    what = "schema" if constraint.kind == "schema" else "pattern"
    return UsageError(f"the {what} of the answer cannot be used: {reason}")
