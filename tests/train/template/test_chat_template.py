"""A chat template is chosen and checked before training and export, and never invented silently."""

import copy
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.train.model.tokenizer import load_tokenizer, plain_template
from kwise.train.template.chat_template import ChatTemplate, choose_template
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Message

LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}\n" + LINES
QUESTION = (Message(role="user", content="Q"), Message(role="assistant", content="A"))
Choose = Callable[..., ChatTemplate]


@pytest.fixture
def tokenizer(smollm2_tokenizer: Any) -> Any:
    return copy.deepcopy(smollm2_tokenizer)


def choose(tokenizer: Any, own: Any, **changed: Any) -> ChatTemplate:
    tokenizer.chat_template = own
    arguments = {"model": "m", "file": None, "date": "", "today_by_default": True, "plain": None}
    return choose_template(tokenizer, **{**arguments, **changed})


def test_a_models_own_template_is_used_without_a_word(tokenizer: Any) -> None:
    template = choose(tokenizer, LINES)
    assert template == ChatTemplate(text=LINES, origin="the chat template of m")
    assert tokenizer.chat_template == LINES


def test_of_several_templates_the_default_is_used_and_the_others_are_named(tokenizer: Any) -> None:
    named = {"default": LINES, "rag": LINES + "R", "tool_use": LINES + "T"}
    template = choose(tokenizer, named)
    assert template.text == tokenizer.chat_template == LINES
    assert template.notes == ("m has the chat templates default, rag, tool_use; default is used",)
    assert choose(tokenizer, named, file=Path("rag")).text == LINES + "R"
    del named["default"]
    with pytest.raises(ConfigError, match=r"by name \(rag, tool_use\), and none is called"):
        choose(tokenizer, named)
    assert choose(tokenizer, named, file=Path("rag")).text == LINES + "R"


def test_named_templates_on_disk_are_read(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = {"default": LINES, "rag": LINES + "R"}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert (tmp_path / "additional_chat_templates" / "rag.jinja").is_file()
    loaded, template = load_tokenizer(str(tmp_path), Path("rag"))
    assert loaded.chat_template == template.text == LINES + "R"
    for file in tmp_path.rglob("*.jinja"):
        file.unlink()
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": name, "template": LINES + name} for name in ("default", "rag")]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": named}))
    assert load_tokenizer(str(tmp_path), None)[1].text == LINES + "default"


def test_a_model_without_a_template_gets_a_plain_one_and_a_note_or_none(tokenizer: Any) -> None:
    plain = plain_template(tokenizer)
    template = choose(tokenizer, None, plain=plain)
    assert template.text == tokenizer.chat_template == plain
    assert template.origin == "kwise's plain chat template, because m has none"
    assert "m has no chat template: kwise's plain one is used" in template.notes[0]
    assert choose(tokenizer, "").text is None


def test_a_template_that_only_a_processor_reads_is_not_replaced_by_the_plain_one(
    tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "chat_template.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has its chat template in chat_template\.json, which"):
        choose(tokenizer, None, model=str(tmp_path), plain=LINES)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            LINES.removesuffix("{% endfor %}"),
            "t.jinja is not a Jinja template: line 1: ",
        ),
        (LINES.encode() + b"\xe9", "--chat-template .*t.jinja: is not UTF-8: .* in position 65"),
        ("{{ messages[0].content + 1 }}", "cannot render a question and its answer: TypeError"),
        ("{{ 1 // 0 }}" + LINES, "cannot render a question and its answer: ZeroDivisionError"),
        ("{{ messages[0].content }}", "prints the same text whatever the answer is"),
        (
            "{% for m in messages %}{% for p in m.content if p.text %}{{ p.text }}{% endfor %}"
            "{% endfor %}",
            "prints the same text whatever the answer is",
        ),
    ],
    ids=["syntax", "latin-1", "type", "division", "no answer", "parts"],
)
def test_a_template_that_cannot_work_is_refused_in_one_line(
    source: str | bytes, problem: str, tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "t.jinja"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(ConfigError, match=problem) as refused:
        choose(tokenizer, LINES, file=file)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_the_engine_would_not_match_is_refused_before_training(
    tokenizer: Any,
) -> None:
    tokenizer.split_special_tokens = True  # not in tokenizer.json, which the engine reads
    with pytest.raises(ConfigError, match=r"cannot be served: the engine's result .* other tokens"):
        choose(tokenizer, LINES)


def test_a_template_for_one_question_and_one_answer_is_taken_and_noted(tokenizer: Any) -> None:
    single = "{% if messages|length != 2 %}{{ raise_exception('one answer') }}{% endif %}" + LINES
    template = choose(tokenizer, single)
    assert template.notes == (
        "the chat template of m refuses conversations of more than one turn: one answer",
    )
    with pytest.raises(TemplateRefusal, match=r"^one answer$"):
        render(tokenizer, (*QUESTION, *QUESTION))


@pytest.mark.parametrize("call", ["('%d %b %Y')", "(format='%Y')", "('%H:%M')"])
def test_todays_date_is_fixed_and_noted_and_the_rest_of_the_template_is_not_touched(
    call: str, tokenizer: Any
) -> None:
    own = (
        "  {% if strftime_now is defined %}{% set day = strftime_now" + call + " %}{% endif %}\n"
        "{% macro today() %}{{ strftime_now" + call + " }}{% endmacro %}\n{{ day }}{{ today() }}\n"
    ) + LINES
    template = choose(tokenizer, own, date="2025-03-01")
    assert template.date == "2025-03-01" and template.text != own and template.notes == ()
    fixed = render(tokenizer, QUESTION)
    day = date(2025, 3, 1).strftime(call.split("'")[1])
    assert fixed.startswith(day + day)
    tokenizer.chat_template = own
    now = render(tokenizer, QUESTION)
    assert fixed[len(2 * day) :] == now[len(2 * day) :]


def test_training_takes_todays_date_and_export_asks_for_the_date_of_training(
    tokenizer: Any,
) -> None:
    template = choose(tokenizer, DATED)
    assert template.date is not None and date.fromisoformat(template.date)
    assert "prints today's date (strftime_now)" in template.notes[0]
    assert choose(tokenizer, template.text).date is None, "it does not change any more"
    with pytest.raises(ConfigError, match="as --template-date YYYY-MM-DD, or a template with"):
        choose(tokenizer, DATED, today_by_default=False)
    with pytest.raises(ConfigError, match="--template-date: the chat template of m prints no date"):
        choose(tokenizer, LINES, date="2025-03-01")
    computed = "{{ strftime_now('%d' + ' %Y') }}" + LINES
    with pytest.raises(ConfigError, match="computes the format in which it prints today's date"):
        choose(tokenizer, computed)
