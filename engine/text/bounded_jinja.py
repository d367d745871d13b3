"""Jinja's immutable sandbox, with bounds on the work and the text of one rendering.

The sandbox keeps a template from attributes and methods that lead to Python, and from changing what
it is given. It does not keep one from running for ever: two nested loops over `range(100000)` take
half an hour, and a text that is appended to itself fills the memory in 40 steps. A signal or a
thread could not end that, because templates are rendered in threads and Python cannot end a thread.
So the environment counts:

- steps: each item of a loop, each call and each filter;
- characters: of the text and of macros, and of what calls, filters, `+`, `~` and `*` make. An item
  of a list counts as one.

It adds filters around the items of loops, `~` and filters when it compiles a template. Their names
have a space, so that no template can use them. Some operations of one step are refused before they
are done: `*` and `**` with a huge result, and calls and filters with a huge number, such as
`center(10000000)`. Other single operations on long texts, such as `replace`, are counted when they
are done.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Templates of common models take 5 to 50 steps per message.
_STEPS, _STEPS_PER_MESSAGE = 100_000, 100
# Templates strip, split and join each message a few times, and some append to one text.
_CHARACTERS, _CHARACTERS_PER_CHARACTER = 10_000_000, 100
_MAX_ARGUMENT = 1_000_000
_MAX_BITS = 10_000  # of the result of `**`
_WIDTH = re.compile(r"[0-9]{7}|[*]")  # of a number in `%`

_ITEMS, _TEXT, _NUMBER = "kwise items", "kwise text", "kwise number"


class Budget:
    """The steps and characters that are left for one rendering.

    Args:
        num_messages: the messages of the conversation.
        num_characters: their characters.
    """

    def __init__(self, num_messages: int, num_characters: int) -> None:
        self._max_steps = _STEPS + _STEPS_PER_MESSAGE * num_messages
        self._max_characters = _CHARACTERS + _CHARACTERS_PER_CHARACTER * num_characters
        self._num_steps = self._num_characters = 0

    @classmethod
    def of(cls, messages: Iterable[Mapping[str, str]]) -> "Budget":
        """Return the budget for a conversation."""
        lengths = [sum(map(len, message.values())) for message in messages]
        return cls(len(lengths), sum(lengths))

    def step(self) -> None:
        """Count one step.

        Raises:
            TemplateRuntimeError: there are too many.
        """
        self._num_steps += 1
        if self._num_steps > self._max_steps:
            raise TemplateRuntimeError(f"it takes more than {self._max_steps} steps")

    def text(self, num_characters: int) -> None:
        """Count the characters of a text.

        Raises:
            TemplateRuntimeError: there are too many.
        """
        self._num_characters += num_characters
        if self._num_characters > self._max_characters:
            raise TemplateRuntimeError(f"it makes more than {self._max_characters} characters")


# Each thread has its own. Without a rendering, as when Jinja folds constants, there is a new one.
BUDGET: ContextVar[Budget | None] = ContextVar("kwise_template_budget", default=None)


def _budget() -> Budget:
    return BUDGET.get() or Budget(0, 0)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters[_ITEMS] = _CountedItems
        self.filters[_TEXT] = _counted_step
        self.filters[_NUMBER] = _checked_number

    def _generate(self, source: nodes.Template, *arguments: Any, **keywords: Any) -> str:
        counted = _Counting().visit(source)
        counted.set_environment(self)
        return super()._generate(counted, *arguments, **keywords)

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of the text, of a macro or of a block, and count their characters."""
        budget = _budget()

        def counted() -> Iterator[str]:
            for part in parts:
                budget.text(len(part))
                yield part

        return "".join(counted())

    def call(
        __self,  # noqa: N805 - as in Jinja, because a template may have an argument `self`
        __context: Context,
        __obj: Any,
        *arguments: Any,
        **keywords: Any,
    ) -> Any:
        """Call a function, method or macro of a template."""
        _budget().step()
        _check_arguments((*arguments, *keywords.values()))
        if isinstance(__obj, LoopContext) and arguments:  # a recursive loop
            arguments = (_CountedItems(arguments[0]), *arguments[1:])
        return _counted(super().call(__context, __obj, *arguments, **keywords))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        _check_operation(operator, left, right)
        return _counted(super().call_binop(context, operator, left, right))


class _Counting(NodeTransformer):
    """Adds the filters that count to loops and to `~`, and counts filters as steps."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _ITEMS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, _TEXT)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        node.args = [_filtered(argument, _NUMBER) for argument in node.args]
        for keyword in node.kwargs:
            keyword.value = _filtered(keyword.value, _NUMBER)
        return node if node.node is None else _filtered(node, _TEXT)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _CountedItems:
    """The items of a loop, each of which is a step. It has a length if they do."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        budget = _budget()
        for item in self._items:
            budget.step()
            yield item

    def __len__(self) -> int:
        if isinstance(self._items, Sized):
            return len(self._items)
        raise TypeError("these items have no length")


def _counted_step(value: Any) -> Any:
    """Count a step, and the length of what a filter or `~` has made."""
    _budget().step()
    return _counted(value)


def _counted(value: Any) -> Any:
    """Count the characters of a text, or the items of a list."""
    if isinstance(value, str | list | tuple | range):
        _budget().text(len(value))
    return value


def _checked_number(value: Any) -> Any:
    """Return an argument of a filter, unless it is a huge number."""
    _check_arguments((value,))
    return value


def _check_arguments(arguments: Iterable[Any]) -> None:
    """Refuse a call with a huge number, such as `center(10000000)`.

    Raises:
        TemplateRuntimeError: an argument is one.
    """
    for value in arguments:
        if isinstance(value, int) and abs(value) > _MAX_ARGUMENT:
            raise TemplateRuntimeError(f"it calls a function with a number over {_MAX_ARGUMENT}")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result is huge.

    Raises:
        TemplateRuntimeError: it is.
    """
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > _MAX_BITS:
            raise TemplateRuntimeError(f"the result of ** has more than {_MAX_BITS} bits")
    elif operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                _budget().text(len(sequence) * max(count, 0))
    elif operator == "%" and isinstance(left, str) and _WIDTH.search(left):
        raise TemplateRuntimeError("it formats a number with a huge width")
