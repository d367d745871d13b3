"""Rankings become tokens: what a template refuses or folds together is told with its line."""

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.step.batch import TokenizedRanking, tokenize_rankings
from kwise.train.step.training_data import prepare
from kwise.train.template.changes import TemplateChanges
from kwise.types import Message

LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_REASONING = LINES.replace("m.content", "m.content.split('</think>')[-1] | trim")


def ranking(*responses: str, prompt: str = "Q", line: int = 1, tied: bool = False) -> Ranking:
    ranks = [1] * len(responses) if tied else range(1, len(responses) + 1)
    return Ranking(
        prompt=(Message(role="user", content=prompt),),
        responses=responses,
        ranks=tuple(ranks),
        origin=f"r.jsonl:{line}",
    )


def tokenize(
    tokenizer: Any, *rankings: Ranking, template: str = LINES, **changed: Any
) -> list[TokenizedRanking]:
    tokenizer.chat_template = template
    limits = {"max_tokens": None, "skip_overlong": False}
    return tokenize_rankings(rankings, tokenizer, **{**limits, **changed})


@pytest.fixture
def tokenizer(smollm2_tokenizer: Any) -> Any:
    return copy.deepcopy(smollm2_tokenizer)


@pytest.mark.parametrize(
    ("template", "responses"),
    [
        (NO_REASONING, ("<think>10*3</think>51", "<think>a guess</think>51")),
        (NO_REASONING, ("no", "Yes", "Yes\n")),
        (LINES, ("Lima", "lima")),
        (LINES, ("½", "1⁄2")),
    ],
    ids=["reasoning", "white space", "case", "NFKC"],
)
def test_one_token_sequence_with_two_ranks_is_refused_with_the_templates_name(
    template: str, responses: tuple[str, ...], tokenizer: Any
) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.NFKC()]
    )
    last = len(responses) - 1
    with pytest.raises(RankingsError) as refused:
        tokenize(tokenizer, ranking(*responses), template=template, template_name="that of m")
    assert str(refused.value).startswith(
        f"r.jsonl:1: responses: [{last - 1}] and [{last}] are the same tokens under this chat "
        "template, with different ranks (that of m)"
    )
    assert tokenize(tokenizer, ranking(*responses, tied=True), template=template)


def test_a_row_that_the_template_refuses_by_any_error_is_a_problem_of_that_row(
    tokenizer: Any,
) -> None:
    divides = LINES.replace("m.content }}", "m.content }}{{ 12 // m.content | length }}")
    picks = LINES.replace("m.role }}", "['user', 'assistant'].index(m.role) }}")
    tool = Ranking(
        prompt=(Message(role="tool", content="22"),),
        responses=("a", "b"),
        ranks=(1, 2),
        origin="r.jsonl:3",
    )
    with pytest.raises(RankingsError) as refused:
        tokenize(tokenizer, ranking("a", "b"), ranking("a", "", line=2), template=divides)
    assert refused.value.problems == (
        "r.jsonl:2: prompt: the chat template refuses it: ZeroDivisionError: integer division or "
        "modulo by zero",
        "r.jsonl: 1 of 2 rankings cannot be used",
    )
    with pytest.raises(RankingsError, match=r"^r\.jsonl:3: prompt: .*is not in list"):
        tokenize(tokenizer, ranking("a", "b"), tool, template=picks)


def test_a_template_that_needs_an_answer_does_not_go_with_the_text_regulariser(
    tokenizer: Any,
) -> None:
    single = "{% if messages|length != 2 %}{{ raise_exception('one answer') }}{% endif %}" + LINES
    assert tokenize(tokenizer, ranking("a", "b"), template=single)
    with pytest.raises(RankingsError, match="--text-regulariser renders the prompt alone, and"):
        tokenize(tokenizer, ranking("a", "b"), template=single, with_text=True)


def test_what_a_template_leaves_out_is_counted_with_an_example(tokenizer: Any) -> None:
    changes = TemplateChanges()
    tokenize(
        tokenizer,
        ranking("yes", "no "),
        ranking("<think>I think</think>4", "<think>hm</think>5", line=2),
        template=NO_REASONING,
        changes=changes,
    )
    assert changes.notes() == [
        "the chat template leaves out or changes a part of 2 of 4 conversations, which the model "
        "will not see; the first is r.jsonl:2: responses[0], which begins with "
        "'<think>I think</think>4'",
        "the chat template strips white space from the messages of 1 of 4 conversations",
    ]
    last_turn = "{{ messages[-2].content }}{{ messages[-1].content }}"
    turns = Ranking(
        prompt=tuple(Message(role="user", content=text) for text in ("First", "Second")),
        responses=("a", "b"),
        ranks=(1, 2),
        origin="r.jsonl:1",
    )
    changes = TemplateChanges()
    tokenize(tokenizer, turns, template=last_turn, changes=changes)
    assert "a part of 2 of 2 conversations" in changes.notes()[0]
    assert "r.jsonl:1: prompt[0], which begins with 'First'" in changes.notes()[0]
    changes = TemplateChanges()
    tokenize(tokenizer, turns, changes=changes)
    assert changes.notes() == []


def test_prompts_that_are_the_same_tokens_are_on_one_side_of_the_split(
    tiny_checkpoint: Path,
) -> None:
    reward_model = load_reward_model(str(tiny_checkpoint))
    reward_model.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    rankings = [
        ranking("a", "b", prompt=prompt, line=number)
        for number in range(8)
        for prompt in (f"Question {number}", f"Question {chr(ord('０') + number)} ")
    ]
    config = TrainConfig(data="d", model="m", output=Path("o"), validation_fraction=0.5)
    data = prepare(rankings, reward_model, config)
    training, validation = (
        {int(r.prompt[0].content.split()[1]) for r in part}
        for part in ([item.ranking for item in data.training], data.validation)
    )
    assert len(training) == len(validation) == 4 and not training & validation
