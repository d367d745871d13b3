"""A chat template that runs or grows without end is refused; others render as ever."""

import ast
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kwise.engine.artifact.files import describe_file
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE
from kwise.engine.config import EngineConfig
from kwise.engine.scorer import Scorer
from kwise.engine.text.chat_template import ChatTemplate, template_environment
from kwise.errors import ArtifactError
from tests.real_data import ROOT

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
HUGE = "range(100000)"
ENDLESS = {
    "nested loops": f"{{% for a in {HUGE} %}}{{% for b in {HUGE} %}}{{% endfor %}}{{% endfor %}}",
    "a loop with a condition": f"{{% for a in {HUGE} if a in {HUGE} %}}"
    f"{{% for b in {HUGE} if b < 0 %}}{{% endfor %}}{{% endfor %}}",
    "a recursive loop": f"{{% for a in {HUGE} recursive %}}"
    f"{{{{ loop({HUGE}) if loop.depth < 3 }}}}{{% endfor %}}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "filters in a loop": f"{{% for a in {HUGE} %}}{{% set x = {HUGE} | list %}}{{% endfor %}}",
    "sums in a loop": f"{{% for a in {HUGE} %}}{{% set x = {HUGE} | sum %}}{{% endfor %}}",
    "output": f"{{% for a in {HUGE} %}}{{{{ 'x' * 1000 }}}}{{% endfor %}}",
    "plain output": f"{{% for a in {HUGE} %}}{'x' * 1000}{{% endfor %}}",
    "a text that doubles by ~": "{% set ns = namespace(x='x') %}{% for a in range(99) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a text that doubles by +": "{% set ns = namespace(x='x') %}{% for a in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a text that doubles by a block": "{% set ns = namespace(x='x') %}{% for a in range(99) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "a text that doubles by a list": "{% set ns = namespace(x='x') %}{% for a in range(99) %}"
    "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "a list that doubles": "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "multiplication": "{{ 'x' * 10000000000 }}",
    "multiplication from the left": "{% set n = 10000000000 %}{{ n * [1] }}",
    "a power": "{{ 10 ** 10000000000 }}",
    "a method": "{{ 'x'.ljust(10000000000) }}",
    "a filter": "{{ 'x' | center(10000000000) }}",
    "a filter with a variable": "{% set n = 10000000000 %}{{ 'x' | indent(width=n) }}",
    "a width": "{{ '%10000000000d' % 1 }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_refused(name: str) -> None:
    with pytest.raises(TemplateError) as raised:
        ChatTemplate(ENDLESS[name]).render(messages=MESSAGES)
    assert "\n" not in str(raised.value)


def test_an_endless_template_is_refused_at_load(tiny_artifact: Path, tmp_path: Path) -> None:
    """The server hung while it started."""
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    (artifact / CHAT_TEMPLATE).write_text(ENDLESS["nested loops"])
    manifest = read_manifest(artifact)
    files = {**manifest.files, CHAT_TEMPLATE: describe_file(artifact / CHAT_TEMPLATE)}
    signed = msgspec.structs.replace(manifest, files=files).signed()
    (artifact / "manifest.json").write_text(signed.to_json())
    with pytest.raises(
        ArtifactError, match="refuses the conversation: it takes more than"
    ) as raised:
        Scorer.load(artifact, EngineConfig())
    assert "\n" not in str(raised.value)


def test_the_bounds_grow_with_the_conversation() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for n in range(50) %}{% endfor %}{{ m.content.strip() + '.' }}"
        "{% endfor %}"
    )
    messages = [{"role": "user", "content": "x" * 100}] * 3_000
    assert len(template.render(messages=messages)) == 3_000 * 101


def test_loops_know_their_length_and_place() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.nextitem.role if not loop.last }}{% else %}none{% endfor %}"
        "{% for k, v in messages[0].items() if v %}{{ k ~ '=' ~ v }}{{ loop.length }}{% endfor %}"
        "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{% for x in missing %}x{% else %}none{% endfor %}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ 'a%s' % 2 }}{{ 2 ** 10 }}"
    )
    plain = ImmutableSandboxedEnvironment().from_string(source).render(messages=MESSAGES)
    assert ChatTemplate(source).render(messages=MESSAGES) == plain


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 'x' | attr('__class__') | attr('__mro__') }}",
        "{% include 'file' %}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_a_template_cannot_reach_python_or_change_what_it_is_given(source: str) -> None:
    assert isinstance(template_environment(), ImmutableSandboxedEnvironment)
    messages = [dict(message) for message in MESSAGES]
    with suppress(TemplateError):
        assert ChatTemplate(source).render(messages=messages) == ""
    assert messages == MESSAGES


def test_the_engine_unpickles_and_executes_nothing() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "code"}
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            assert forbidden.isdisjoint(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "np.load", "numpy.load"), path


@pytest.mark.parametrize("name", ["kwise items", "kwise text", "kwise number"])
def test_a_template_cannot_use_the_filters_that_count(name: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(f"{{{{ messages | {name} }}}}")
