"""The format that a row without a known format resembles, for the message that refuses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kwise.train.data.formats.lists import lacks_labels
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.rows.annotation_tools import join_names

# At least half of a format's keys must be there, alike names included, and one that tells more
# than that there is a prompt.
_MIN_SHARE = 0.5
_ALIKE_WEIGHT = 0.75
# Keys whose name --score-column replaces.
_SCORES = {"helpfulness", "pm_score"}
_PROMPTS = {"prompt", "question", "instruction", "context", "title"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resemblance:
    """A format, and the keys that a row lacks for it.

    alike: (key of the row, key of the format) for names that may be misspelt.
    """

    format: FormatName
    missing: tuple[str, ...]
    alike: tuple[tuple[str, str], ...]

    def reason(self) -> str:
        """Return why the row is not of the format."""
        parts = [f"{key[:40]!a} may be {wanted!r}" for key, wanted in self.alike]
        misspelt = {wanted for _, wanted in self.alike}
        parts += [f"has no {key!r}" for key in self.missing if key not in misspelt]
        return ", ".join(parts)


def resemblance(row: Mapping[str, Any]) -> Resemblance | None:
    """Return the format with the largest share of keys in the row, or None if none has half."""
    best = 0.0, 0.0
    found: Resemblance | None = None
    for name, form in FORMATS.items():
        for keys in form.key_sets():
            missing = tuple(key for key in keys if key not in row)
            alike = _alike(missing, keys, row)
            if not {*keys} - {*missing} - _PROMPTS and not {key for _, key in alike} - _PROMPTS:
                continue
            num_found = len(keys) - len(missing) + _ALIKE_WEIGHT * len(alike)
            share = num_found / len(keys)
            if share >= _MIN_SHARE and (share, num_found) > best:
                best = share, num_found
                found = Resemblance(format=name, missing=missing, alike=alike)
    return found


def _alike(
    missing: tuple[str, ...], keys: Mapping[str, str | None], row: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Return (key of the row, missing key) for keys that may be misspelt, each used once."""
    others = [key for key in row if key not in keys]
    alike = []
    for key in missing:
        close = get_close_matches(key, others, n=1, cutoff=0.75)
        if close and (keys[key] is None or isinstance(row[close[0]], list | dict)):
            alike.append((close[0], key))
            others.remove(close[0])
    return tuple(alike)


def unknown_format(row: Mapping[str, Any]) -> str:
    """Return why no format fits `row`: its keys, and the format that it resembles."""
    keys = join_names(list(row)) or "none"
    problem = f"no known format has the keys ({keys})"
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        inner = detect(first) if isinstance(first, dict) else None
        if inner is not None:
            return (
                f"{problem}; its {key[:40]!a} holds rows of the format {inner.value}: write one "
                f"row per line, as jq -c '.{key[:40]}[]' FILE > rows.jsonl does"
            )
    if lacks_labels(row):
        return (
            f"{problem}; it resembles completions, but has no score or rank in each response, and "
            "no list of scores or ranks beside the responses (kwise data convert has --format "
            "completions --score-column NAME for another name)"
        )
    if (nearest := resemblance(row)) is None:
        return problem
    problem += f"; it resembles {nearest.format.value}, but {nearest.reason()}"
    if len(nearest.missing) == 1 and _SCORES.issuperset(nearest.missing) and not nearest.alike:
        choice = f"--format {nearest.format.value} --score-column NAME"
        problem += f" (kwise data convert has {choice} for another name)"
    return problem
