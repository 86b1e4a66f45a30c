"""Chat templates, rendered with limits on work and memory: the template of a downloaded model is a program.

The environment has the tags, filters and globals that `transformers` gives to chat templates. jinja's sandbox prevents
access to Python, but neither loops without end nor values without limit.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, ext, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TEMPLATE = 2**20  # characters; the longest published ones have 20,000
MAX_STEPS = 200_000  # of one rendering: iterations, calls, operations, and their work; about 2 s
MAX_SIZE = 2**20  # characters and items of a value, and of the output
WORK_OF_A_STEP = 4096  # characters

_steps: ContextVar[list[int]] = ContextVar("_steps")  # of the rendering in this thread


def render_chat_template(
    template: str, messages: Sequence[Mapping[str, Any]], date: datetime.date, **values: Any
) -> str:
    """The text of a conversation. date: what the template reads as the current date; values: other variables.

    Raises jinja2.TemplateError and other errors of the template, also if it exceeds a limit.

    >>> render_chat_template("{{ messages[0].content }}", [{"content": "Hi"}], datetime.date(2024, 7, 26))
    'Hi'
    >>> render_chat_template("{{ 'a' * 10**9 }}", [], datetime.date(2024, 7, 26))
    Traceback (most recent call last):
    jinja2.exceptions.TemplateError: the chat template makes a value of more than 1,048,576 characters or items
    """
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"the chat template has more than {MAX_TEMPLATE:,} characters")
    before = _steps.set([0])
    try:
        known = [{k: v for k, v in message.items() if v is not None} for message in messages]
        text: str = _compiled(template).render(
            messages=known, tools=None, documents=None, strftime_now=date.strftime, **values
        )
        return text
    finally:
        _steps.reset(before)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    return _Environment().from_string(template)


def _spend(*values: Any) -> None:
    """Count an operation on these values, whose work is at most the product of their sizes."""
    spent, work = _steps.get(), 1
    for value in values:
        work *= max(1, _size(value, spent))
    spent[0] += 1 + work // WORK_OF_A_STEP
    if spent[0] > MAX_STEPS:
        raise TemplateError("the chat template takes too many steps")


def _size(value: Any, spent: list[int]) -> int:
    """Characters and items of a value when it is written out; the magnitude of an integer."""
    if isinstance(value, int):
        size = abs(value)
    elif isinstance(value, str | bytes | range):
        size = len(value)
    elif isinstance(value, list | tuple | dict):
        spent[0] += len(value) // 8
        items: Any = value.items() if isinstance(value, dict) else value
        size = 1
        for item in items:
            size += _size(item, spent) if not isinstance(item, int) else 1
            if size > MAX_SIZE:
                break
    else:
        size = 1
    if size > MAX_SIZE:
        raise _too_large()
    return size


def _too_large() -> TemplateError:
    return TemplateError(
        f"the chat template makes a value of more than {MAX_SIZE:,} characters or items"
    )


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result have limits."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        _spend(*args, *kwargs.values(), *_widths(args))
        return _checked(function(*args, **kwargs))

    return run


def _widths(values: Iterable[Any]) -> Iterator[int]:
    """Numbers inside texts, which may be the widths of a format."""
    for value in values:
        if isinstance(value, str) and ("%" in value or "{" in value):
            digits = "".join(c if c.isdecimal() else " " for c in value[:4096]).split()
            yield max(map(int, digits), default=1)


def _checked(value: Any) -> Any:
    """The value, if it is not too large."""
    if isinstance(value, str | bytes | list | tuple) and len(value) > MAX_SIZE:
        raise _too_large()
    return value


class _Counted:
    """An iterable whose iterations are counted."""

    def __init__(self, items: Iterable[Any]):
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # pyright: ignore[reportArgumentType]  (TypeError without a length)


class _Generator(CodeGenerator):
    """Writes `a ~ b` as a call that checks its size."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(ext.Extension):
    """The tag {% generation %} around an assistant's turn, which changes no text."""

    tags = {"generation"}  # noqa: RUF012 (jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # which would compute constants before they can be counted
            finalize=_printed,
            extensions=[_Generation, ext.loopcontrols],
        )
        self.filters = {name: _limited(run) for name, run in self.filters.items()}
        self.filters |= {"tojson": _limited(_to_json), "_counted": _Counted, "_read": _read}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "dict": _dict, "namespace": _Namespace}

    def join(self, parts: Sequence[Any]) -> str:
        """`a ~ b`, and the text of an output."""
        spent = _steps.get()
        if sum(_size(part, spent) if not isinstance(part, int) else 1 for part in parts) > MAX_SIZE:
            raise _too_large()
        _spend()
        return "".join(map(str, parts))

    def concat(self, parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The text of a body. The parts are produced while they are counted."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            if size > MAX_SIZE:
                raise _too_large()
            found.append(part)
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        parts = right if isinstance(right, tuple) else (right,)  # of a format
        _spend(*((left, *parts) if operator != "+" else ()), *_widths([left]))
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The sandbox wraps the method `format` of texts.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        _spend(owner, *args, *kwargs.values(), *_widths([owner]))
        if isinstance(obj, LoopContext):  # of a recursive loop
            args = (_Counted(args[0]), *args[1:])
        return _checked(super().call(context, obj, *args, **kwargs))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in list(source.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "_counted")
        for compare in list(source.find_all(nodes.Compare)):
            compare.expr = _filtered(compare.expr, "_read")
            for operand in compare.ops:
                operand.expr = _filtered(operand.expr, "_read")
        for item in list(source.find_all(nodes.Getitem)):
            item.node = _filtered(item.node, "_read")
        return super()._generate(source, *args, **kwargs)


def _filtered(value: Any, name: str) -> nodes.Expr:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _read(value: Any) -> Any:
    """The value, of which an operation reads all characters."""
    if isinstance(value, str):
        _spend(value)
    return value


@pass_context  # so that constants are not computed before they can be counted
def _printed(context: Context, value: Any) -> Any:
    if not isinstance(value, int):
        _size(value, _steps.get())
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` as in transformers; that of jinja escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """The function `dict` of templates, without the attributes of the class."""
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without names that Python uses."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"the chat template sets {name!r} of a namespace")
        super().__setitem__(name, value)
