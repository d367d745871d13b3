"""Compile chat templates with Jinja's immutable sandbox, as transformers does, and with bounds."""

from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser

from kwise.engine.text.bounded_jinja import BUDGET, BoundedEnvironment, Budget
from kwise.libraries.errors import cause_of


def template_environment() -> BoundedEnvironment:
    """Return the Jinja environment of chat templates.

    It has the functions and filters that transformers provides
    (transformers.utils.chat_template_utils) except for today's date, because a reward must not
    change overnight.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment


class ChatTemplate:
    """A compiled chat template.

    Raises:
        jinja2.TemplateSyntaxError: the template is malformed.
    """

    def __init__(self, source: str) -> None:
        self._template = template_environment().from_string(source)

    def render(self, *, messages: Sequence[Mapping[str, str]], **variables: Any) -> str:
        """Return the text of a conversation.

        Raises:
            jinja2.TemplateError: the template refuses the conversation, fails on it, takes too many
                steps, or makes too long a text; see `bounded_jinja.py`.
        """
        token = BUDGET.set(Budget.of(messages))
        try:
            return self._template.render(messages=messages, **variables)
        except (TemplateError, MemoryError):
            raise
        except Exception as error:  # a template can divide by zero, or index an empty list
            raise TemplateRuntimeError(cause_of(error)) from error
        finally:
            BUDGET.reset(token)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`: marks the assistant's text; rendered unchanged.

    Variables that are set inside are not visible outside, as in transformers.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _to_json(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML and so would change the tokens.
    return dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)
