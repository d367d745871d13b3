"""OpenAI's comparisons of summaries (Stiennon et al. 2020, arXiv:2009.01325).

    {"info": {"post", "title", "subreddit", "article", …},
     "summaries": [{"text", "policy", …}, …], "choice": 0 or 1, "worker", …}

The prompt is the one of the paper's models (openai/summarize-from-feedback,
summarize_from_feedback/tasks.py), but not truncated. The space between "TL;DR:" and a summary
belongs to neither.

https://huggingface.co/datasets/openai/summarize_from_feedback, comparisons
"""

from collections.abc import Iterator

from kwise.train.data.rows.fields import (
    as_objects,
    refuse,
    required,
    required_object,
    string_field,
    user_prompt,
)
from kwise.train.data.rows.items import ComparedPair, ReadOptions, RowItem, Skipped
from kwise.train.data.rows.row import Row


def read_summarize(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    summaries = as_objects(required(row, "summaries"), "summaries")
    if len(summaries) != 2:
        refuse("summaries", f"has {len(summaries)}; a comparison needs 2")
    choice = required(row, "choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        refuse("choice", "must be 0 or 1")
    sides = [
        string_field(summary, "text", f"summaries[{index}]").strip()
        for index, summary in enumerate(summaries)
    ]
    worker = string_field(row, "worker") if row.get("worker") is not None else None
    prompt = user_prompt(_prompt(required_object(row, "info")))
    if sides[0] == sides[1]:
        yield Skipped(what="row", reason="both responses are the same")
    else:
        better, worse = sides[int(choice)], sides[1 - int(choice)]
        yield ComparedPair(prompt=prompt, better=better, worse=worse, annotator=worker)


def _prompt(post: Row) -> str:
    if post.get("article") is not None:
        return f"Article:\n\n{string_field(post, 'article', 'info')}\n\nTL;DR:"
    subreddit, title, body = (
        string_field(post, key, "info") for key in ("subreddit", "title", "post")
    )
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"
