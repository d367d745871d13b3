"""Token files, and what a call must send."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.server.security.files import WatchedFiles
from kwise.engine.server.security.tokens import MAX_TOKENS, Tokens, read_tokens
from kwise.errors import ConfigError, Unauthenticated
from tests.engine.server.security.conftest import ALICE, BOB, TOKENS

SECRET = "secret-0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def tokens_of(path: Path, content: str | bytes) -> Tokens:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_tokens(path)


@pytest.mark.parametrize(
    "content",
    [
        TOKENS,
        TOKENS.replace("\n", "\r\n"),
        "\ufeff" + TOKENS,
        f"  alice:{ALICE}\t\nbob:{BOB}",
        f"bob:{BOB}\nalice:{ALICE}\nalice:{ALICE}-of-next-month\n",
    ],
    ids=["plain", "crlf", "byte order mark", "spaces around lines", "two tokens of one name"],
)
def test_the_name_of_a_token_is_that_of_its_line(path: Path, content: str) -> None:
    tokens = tokens_of(path, content)
    assert tokens.name_of([f"Bearer {ALICE}"]) == "alice"
    assert tokens.name_of([f"bearer   {BOB}"]) == "bob"


@pytest.mark.parametrize(
    ("headers", "problem", "is_wrong"),
    [
        ([], "the call has no token", False),
        ([f"Bearer {ALICE}", f"Bearer {ALICE}"], "several authorization headers", False),
        ([f"Basic {ALICE}"], "another form", False),
        ([ALICE], "another form", False),
        ([f"Bearer\t{ALICE}"], "another form", False),
        (["Bearer "], "another form", False),
        ([f"Bearer {ALICE} {BOB}"], "another form", False),
        ([f"Bearer {ALICE}\u00e9"], "another form", False),
        (["Bearer " + "a" * 5000], "another form", False),
        ([f"Bearer {ALICE}x"], "does not know this token", True),
        ([f"Bearer {ALICE[:-1]}"], "does not know this token", True),
        ([f"Bearer {ALICE.upper()}"], "does not know this token", True),
        (["Bearer alice"], "does not know this token", True),
    ],
    ids=range(13),
)
def test_a_call_without_a_known_token_is_refused(
    path: Path, headers: list[str], problem: str, is_wrong: bool
) -> None:
    with pytest.raises(Unauthenticated, match=problem) as raised:
        tokens_of(path, TOKENS).name_of(headers)
    assert raised.value.is_wrong is is_wrong
    assert ALICE not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "it has no token"),
        ("# nobody\n\n", "it has no token"),
        (SECRET, "line 1: it must have the form NAME:TOKEN"),
        (f"\nal ice:{SECRET}", "line 2: the name must have"),
        (f":{SECRET}", "line 1: the name must have"),
        (f"alice: {SECRET}", "line 1: the token must have letters"),
        (f"alice:{SECRET} {SECRET}", "line 1: the token must have letters"),
        (f"alice:{SECRET}\t{SECRET}", "line 1: the token must have letters"),
        (f"alice:{SECRET}\u00e9", "line 1: the token must have letters"),
        (f"alice:{SECRET}\x85bob:{SECRET}", "line 1: the token must have letters"),
        (f"alice:{SECRET}\rbob:{SECRET}", "line 1: the token must have letters"),
        (f"alice:{SECRET[:15]}", "line 1: the token has 15 characters"),
        (f"alice:{SECRET * 30}", "it must have 16 to 512"),
        (f"alice:{SECRET}\nbob:{SECRET}", "line 2: line 1 has the same token"),
        (f"alice:{SECRET}\nalice:{SECRET}", "line 2: line 1 has the same token"),
        (f"alice:{SECRET}\n".encode() + b"\xff", "it is not UTF-8"),
        ("\n".join(f"a:{SECRET}{n}" for n in range(MAX_TOKENS + 1)), "the limit is 1000"),
        ("#" * (2 << 20), "larger than 1048576 bytes"),
    ],
    ids=range(18),
)
def test_a_broken_file_is_refused_with_the_number_of_its_line(
    path: Path, content: str | bytes, problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        tokens_of(path, content)
    assert str(raised.value).startswith(f"--token-file {path}")
    assert problem in str(raised.value)
    assert SECRET[:15] not in str(raised.value)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_file_or_one_sentence_that_quotes_nothing(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-text"
    try:
        tokens_of(path, f"name:{SECRET}\n{text}")
    except ConfigError as error:
        # The message is the same for every line of its kind.
        assert SECRET not in str(error)
        assert "\n" not in str(error)


def test_every_token_is_compared_as_a_digest_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison of strings takes longer, the more characters are right."""
    tokens = tokens_of(path, TOKENS)
    assert ALICE.encode() not in b"".join(digest for digest, _ in tokens._digests)
    compared: list[int] = []

    def compare_digest(known: bytes, given: bytes) -> bool:
        compared.append(len(known) + len(given))
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare_digest)
    assert tokens.name_of([f"Bearer {ALICE}"]) == "alice"
    assert compared == [64, 64]


def test_a_broken_file_keeps_the_earlier_tokens(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(TOKENS)
    files = WatchedFiles([path], lambda: read_tokens(path), "tokens")
    earlier = files.value
    path.write_text(f"alice {SECRET}\n")
    with caplog.at_level("INFO"):
        files.reread()
        files.reread()  # the same file is not read twice
    assert files.value is earlier
    assert len(caplog.messages) == 1
    assert "the earlier tokens stay in use" in caplog.text and SECRET not in caplog.text
    path.unlink()
    files.reread()
    assert files.value is earlier
    path.write_text(f"carol:{SECRET}\n")
    files.reread()
    assert files.value.name_of([f"Bearer {SECRET}"]) == "carol"
