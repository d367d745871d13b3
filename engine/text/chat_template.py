"""Compile chat templates with Jinja's immutable sandbox, as transformers does."""

from json import dumps
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def template_environment() -> ImmutableSandboxedEnvironment:
    """Return the Jinja environment of chat templates.

    It has the functions and filters that transformers provides
    (transformers.utils.chat_template_utils) except for today's date, because a reward must not
    change overnight.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment


def compile_template(source: str) -> Template:
    """Compile a chat template.

    Raises:
        jinja2.TemplateSyntaxError: the template is malformed.
    """
    return template_environment().from_string(source)


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
