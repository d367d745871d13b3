"""The text on which precisions are measured: what is too long is left out, and named."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import ConfigError
from kwise.export.precision.text_groups import encode_groups, read_text_groups


@pytest.fixture(scope="module")
def encoder(smollm2_tokenizer: Any) -> ConversationEncoder:
    return ConversationEncoder(
        smollm2_tokenizer.backend_tokenizer,
        template="{% for m in messages %}{{ m.content }}{% endfor %}",
        special_tokens={},
        limits=EncoderLimits(max_tokens=10, vocab_size=49_152),
        trailing_pad_id=None,
    )


def written(path: Path, *rows: tuple[str, ...]) -> str:
    """Write rows, each a prompt and its responses."""
    lines = [
        {"prompt": prompt, "responses": [{"text": t, "rank": r} for r, t in enumerate(texts, 1)]}
        for prompt, *texts in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


LONG = " a" * 20


def test_what_is_too_long_is_left_out_with_line_and_limit(
    tmp_path: Path, encoder: ConversationEncoder
) -> None:
    path = written(
        tmp_path / "r.jsonl",
        ("P", "a", "b"),
        ("P", "a", LONG, "c"),
        (LONG, "a", "b"),
        ("P", "a", LONG),
    )
    lines: list[str] = []
    groups = encode_groups(encoder, read_text_groups(path), tell=lines.append)
    assert [len(group) for group in groups] == [2, 2]
    places = ("2: skipped: responses[1]", "3: skipped: prompt", "4: skipped: responses[1]")
    for line, place in zip(lines, places, strict=False):
        assert line.startswith(f"--rankings: {path}:{place}") and "10" in line
    assert lines[-1] == (
        "--rankings: left out 5 of 9 responses, among them those of 2 prompts with fewer than two "
        "responses within the limits"
    )


def test_groups_after_those_that_are_too_long_are_read(
    tmp_path: Path, encoder: ConversationEncoder
) -> None:
    path = written(tmp_path / "r.jsonl", *[(LONG, "a", "b")] * 40, *[("P", "a", "b")] * 40)
    lines: list[str] = []
    groups = encode_groups(encoder, read_text_groups(path), max_groups=3, tell=lines.append)
    assert len(groups) == 3
    assert len([line for line in lines if "r.jsonl:" in line.partition(" skipped: ")[0]]) == 20
    with pytest.raises(ConfigError, match="--rankings, --max-tokens: precisions cannot"):
        encode_groups(encoder, read_text_groups(path)[:40], tell=lines.append)


def test_rankings_of_another_format_are_converted(
    tmp_path: Path, encoder: ConversationEncoder
) -> None:
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nP,a,b\n")
    lines: list[str] = []
    [group] = read_text_groups(str(tmp_path / "p.csv"), tell=lines.append)
    assert (group.origin, group.responses) == (f"{tmp_path / 'p.csv'}:2", ("a", "b"))
    assert "converted from the format trl: 1 rows read, 1 rankings kept" in lines[0]
