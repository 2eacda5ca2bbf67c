"""Chat templates with a bound on memory and steps.

The sandbox of jinja2 keeps a template away from files and from Python, but not from computing:
`{{ 'x' * 10**10 }}` takes all memory, and `{{ 10**10**10 }}` never ends. Here, every operation that
can enlarge a value is checked before it runs, and a rendering has a budget of characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from itertools import chain
from threading import Lock
from typing import Any, cast

from jinja2 import nodes
from jinja2.environment import Environment, Template
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from idefics_cli.models.families.protocols import Processor

# Maximum length of a value in a template: four times the longest text that a command takes from
# stdin.
_LARGEST_VALUE = 16_000_000
# A rendering may cost this many characters. A loop step (`_STEP`) and a call (`_CALL`) cost as many
# characters as could be written in their time.
_BUDGET = 400_000_000
_STEP = 40
_CALL = 1000
_CHARACTER = 400
_OBJECT = 56  # bytes that Python takes for a list or a text, besides its items or characters
_LARGEST_BITS = 4096
_DEEPEST = 1000  # Python writes no deeper value
# `_WIDE` finds a large width in a format string, such as `%99999999d`. `_NESTED` finds a width that
# is given as a value, as in `%*d` and `{:>{width}}`.
_WIDE = re.compile(r"\d{5}")
_SPACES = re.compile(r"\s+")
_NESTED = re.compile(r"\*|\{[^{}]*\{")
_LONGEST_WIDTH = 10_000
# With these methods and filters, a short template can make a huge text: they take a width, or
# repeat a value.
_WIDENING = frozenset(
    {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes",
     "tojson", "zfill"}
)  # fmt: skip
# Filters that read a text at the speed of C. All others cost `_CHARACTER` per character.
_QUICK = frozenset(
    {"attr", "capitalize", "center", "count", "d", "default", "e", "escape", "first", "float",
     "format", "indent", "int", "join", "last", "length", "lower", "replace", "safe", "string",
     "tojson", "trim", "upper"}
)  # fmt: skip


class TemplateTooLarge(ValueError):
    """A template that computes more than any prompt needs."""


class BoundedTemplate:
    """Renders the chat template of a checkpoint as its processor does, with bounds.

    Args:
        processor: Processor of the checkpoint, with a template.
        budget: A rendering may cost this many characters.
    """

    def __init__(self, processor: Processor, *, budget: int = _BUDGET) -> None:
        self._processor, self._budget = processor, budget
        self._template: Template | None = None
        self._lock = Lock()

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, add_generation_prompt: bool
    ) -> str:
        """Return the prompt of *conversation*.

        Raises:
            TemplateTooLarge: If it takes too much.
            Exception: Any that the template causes.
        """
        with self._lock:  # the budget is that of one rendering
            if self._template is None:
                self._template = _compile(str(self._processor.chat_template))
            cast("_BoundedEnvironment", self._template.environment).left = self._budget
            return self._template.render(
                messages=conversation,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._processor.tokenizer.special_tokens_map,
            )


def _compile(source: str) -> Template:
    environment = _BoundedEnvironment(_library_environment())
    tree = _Counted().visit(environment.parse(source))
    environment.text = _text_in(tree)
    code = environment.compile(tree)
    return Template.from_code(environment, code, environment.make_globals(None))


def _library_environment() -> Environment:
    """Return the environment of transformers, with its filters, functions and tags."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return cast("Environment", _compile_jinja_template("").environment)


# Any: the values of a template, and the signatures of jinja2.
class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "%"})
    # `left`: characters that the rendering may still make. `text`: characters of the template's own
    # text.
    left = _BUDGET
    text = 0

    def __init__(self, model: Environment) -> None:
        super().__init__(
            trim_blocks=model.trim_blocks,
            lstrip_blocks=model.lstrip_blocks,
            extensions=[type(extension) for extension in model.extensions.values()],
            finalize=self._finalize,
        )
        names = set(model.globals) - {"lipsum"}
        self.globals = {name: model.globals[name] for name in names}
        self.filters = {name: self._checked(name, f) for name, f in model.filters.items()}
        self.tests = dict(model.tests)

    def spend(self, cost: float) -> None:
        """Take *cost* characters from the budget of the rendering."""
        self.left -= int(min(cost, _BUDGET + 1))
        if self.left < 0:
            raise TemplateTooLarge("it takes too many steps, or too much memory")

    def counted(self, items: Iterable[Any], cost: int) -> Iterator[Any]:
        """Yield *items*; each costs *cost* characters and the cost of a loop step."""
        for item in items:
            self.spend(_STEP + cost)
            yield item

    def joined(self, *parts: Any) -> str:
        """Return the text of `a ~ b`."""
        _check(sum(map(_size, parts)))
        return str(self._made("".join(map(str, parts))))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        sizes = _size(left), _size(right)
        if operator == "%" and isinstance(left, str):
            _check_format(left, [right])
        elif operator == "+":
            _check(sum(sizes))
        elif operator in ("*", "**"):
            _check_product(operator, left, right, sizes)
        return self._made(super().call_binop(context, operator, left, right))

    # The names begin with `__`, so that a template can pass an argument named `self` or `obj`.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, a macro or a function."""
        if getattr(__obj, "__self__", None) is __self:
            return super().call(__context, __obj, *args, **kwargs)
        name = str(getattr(__obj, "__name__", ""))
        if name == "join" or isinstance(__obj, LoopContext):
            args = tuple(__self._listed(value) for value in args)
        receiver, given = getattr(__obj, "__self__", ""), [*args, *kwargs.values()]
        if isinstance(receiver, str | bytes | int | float | list | tuple | dict):
            _check_call(name, receiver, given)
        if name == "strftime_now":
            _check_format(" ".join(map(str, given)), [])
        repeated = sum(map(_size, args)) if isinstance(__obj, LoopContext) else 1
        __self.spend(_CALL + __self.text * repeated)
        return __self._made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the checked `str.format`."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, [*args, *kwargs.values()])
            return str(self._made(safe(*args, **kwargs)))

        return checked

    def _finalize(self, value: Any) -> Any:
        self.spend(_size(value))
        return value

    def _made(self, value: Any) -> Any:
        self.spend(_size(value))
        return value

    def _listed(self, value: Any) -> Any:
        if not isinstance(value, Iterator):
            return value
        items, size = [], 0
        for item in self.counted(value, 0):
            size += _size(item) + _OBJECT
            _check(size)
            items.append(item)
        return items

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # jinja2 puts the context or the environment first for functions that ask for it. The value
        # is then the second argument.
        start = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            first, *given = args[start:] or ("",)
            if name in ("join", "list", "sort", "unique", "reverse"):
                first = self._listed(first)
            _check_call(name, first, [*given, *kwargs.values()])
            if name not in _QUICK and isinstance(first, str):
                self.spend(_CHARACTER * len(first))
            return self._made(function(*args[:start], first, *given, **kwargs))

        return checked


class _Counted(NodeTransformer):
    """Makes loops and `~` call the environment, which counts their cost."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count the items of a loop, each with the text in its body."""
        self.generic_visit(node)
        cost = _text_in(node)
        items = cast("nodes.Expr", node.iter)
        node.iter = _call("counted", [items, nodes.Const(cost)], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Check the size before texts are joined."""
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)


def _text_in(node: nodes.Node) -> int:
    return sum(len(text.data) for text in node.find_all(nodes.TemplateData))


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, arguments, [], None, None)
    call.set_lineno(line)
    return call


def _size(value: object) -> int:
    """Return about the bytes of *value* and of all that it holds.

    Raises:
        TemplateTooLarge: If they are more than any prompt has.
    """
    total, held = 0, cast("dict[int, list[Any]]", {0: [(value,), 1]})
    for _ in range(_DEEPEST):
        if not held:
            return total
        # A list may hold another one many times, which again holds many: each counts as often as
        # it is held, but is read once.
        inner: dict[int, list[Any]] = {}
        for parts, times in held.values():
            for part in parts:
                if isinstance(part, Namespace):
                    part = object.__getattribute__(part, "_Namespace__attrs")
                if isinstance(part, str | bytes):
                    # A text alone counts its characters, which a product multiplies.
                    total += times * (len(part) + (_OBJECT if part is not value else 0))
                elif isinstance(part, int):
                    total += times * (part.bit_length() // 3 + 1)
                elif isinstance(part, Mapping | list | tuple | set | frozenset):
                    total += times * (8 * len(part) + _OBJECT)
                    items = chain(part, part.values()) if isinstance(part, Mapping) else part
                    if part:
                        inner.setdefault(id(part), [items, 0])[1] += times
            _check(total)
        held = inner
    raise TemplateTooLarge(f"it makes a value of more than {_DEEPEST} levels")


def _check(size: float) -> None:
    if size > _LARGEST_VALUE:
        raise TemplateTooLarge(f"it makes a value of more than {_LARGEST_VALUE:,} characters")


def _check_product(operator: str, left: Any, right: Any, sizes: tuple[int, int]) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0) if operator == "**" else 0
        if bits > _LARGEST_BITS or max(sizes) > _LARGEST_BITS:
            raise TemplateTooLarge("it makes a number of more than a thousand digits")
    elif isinstance(right, int):
        _check(sizes[0] * max(right, 0))
    elif isinstance(left, int):
        _check(sizes[1] * max(left, 0))


def _check_call(name: str, receiver: Any, given: list[Any]) -> None:
    """Check the size of what the method or filter *name* makes of *receiver*."""
    size, sizes = _size(receiver), [_size(value) for value in given]
    if name in ("replace", "translate"):
        old = given[0] if given else ""
        is_text = isinstance(receiver, str) and isinstance(old, str)
        count = receiver.count(old) if is_text else size
        _check(size + (count + 1) * max(sizes, default=0))
    elif name == "join":
        is_method = isinstance(receiver, str) and bool(given) and not isinstance(given[0], str)
        items, between = (given[0], size) if is_method else (receiver, sum(sizes))
        count = len(items) if hasattr(items, "__len__") else 1
        _check(size + sum(sizes) + between * count)
    elif name == "format":
        _check_format(str(receiver), given)
    elif name in ("split", "rsplit", "splitlines") and isinstance(receiver, str):
        at = given[0] if name != "splitlines" and given else None
        ends = receiver.count(at) if isinstance(at, str) and at else _count_spaces(receiver)
        _check(size + ends * _OBJECT)
    elif name in _WIDENING:
        factors = (abs(v) if isinstance(v, int) else _size(v) for v in given)
        _check((size + 1) * math.prod(max(1, factor) for factor in factors))


def _count_spaces(text: str) -> int:
    return sum(1 for _ in _SPACES.finditer(text))


def _check_format(text: str, given: list[Any]) -> None:
    """Check the size that *text* will have when the values *given* are put into its fields."""
    given = [v for value in given for v in (value if isinstance(value, tuple) else (value,))]
    is_wide = _WIDE.search(text) is not None
    if _NESTED.search(text):  # a width comes from the values
        is_wide |= any(isinstance(v, int) and v > _LONGEST_WIDTH for v in given)
        is_wide |= any(isinstance(v, str) and _WIDE.search(v) for v in given)
    if is_wide:
        raise TemplateTooLarge("it formats a text with thousands of columns")
    _check(len(text) + sum(map(_size, given)) * (1 + text.count("%") + text.count("{")))
