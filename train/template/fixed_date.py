"""The date that a chat template prints, fixed so that rewards do not change overnight.

Templates print today's date by `strftime_now(format)`, a function that transformers gives them. A
macro of the same name in front of the template hides that function. The result is an ordinary
template: transformers, kwise's engine and any other program render it with the same date.
"""

from datetime import datetime

from jinja2 import meta, nodes
from transformers import PreTrainedTokenizerBase

from kwise.engine.text.chat_template import template_environment
from kwise.errors import ConfigError

_FUNCTION = "strftime_now"
# `trim_blocks` removes the newline, so the template itself begins a line, as it did before.
_MACRO = (
    "{{%- macro strftime_now(format) -%}}"
    "{{{{ {texts!r}[format] if format in {texts!r} else raise_exception('unknown date format') }}}}"
    "{{%- endmacro %}}\n"
)


def prints_date(template: str) -> bool:
    """Return whether a template may print today's date.

    Raises:
        jinja2.TemplateSyntaxError: the template is malformed.
    """
    return _FUNCTION in meta.find_undeclared_variables(template_environment().parse(template))


def with_fixed_date(template: str, day: str) -> str:
    """Return the template with the date `day`, "YYYY-MM-DD", in place of today's.

    Raises:
        ConfigError: the template does not write the date's format as a literal.
    """
    moment = datetime.fromisoformat(day)
    texts = {}
    for call in template_environment().parse(template).find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == _FUNCTION):
            continue
        arguments = [*call.args, *(keyword.value for keyword in call.kwargs)]
        known = [a.value for a in arguments if isinstance(a, nodes.Const)]
        if len(arguments) != 1 or not known or not isinstance(known[0], str):
            raise ConfigError(
                "the chat template computes the format in which it prints today's date, so the "
                "date cannot be fixed: give a template with a fixed date as --chat-template FILE"
            )
        texts[known[0]] = moment.strftime(known[0])
    return _MACRO.format(texts=texts) + template


def today(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the date that templates print today, as "YYYY-MM-DD"; transformers' clock decides."""
    template = "{{ strftime_now('%Y-%m-%d') }}"
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], chat_template=template, tokenize=False
        )
    )
