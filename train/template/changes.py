"""Count the messages that a chat template changes or leaves out.

Some templates drop the reasoning before an answer, the turns before the last one, or white space.
The model never reads what is dropped, so the user should know.
"""

from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation

_QUOTED = 40


class TemplateChanges:
    """Counts of conversations that do not contain all their messages as they are."""

    def __init__(self) -> None:
        self._num_conversations = 0
        self._num_stripped = 0
        self._num_changed = 0
        self._example = ""

    def add(self, ranking: Ranking, index: int, conversation: Conversation, text: str) -> None:
        """Compare a conversation with its text as the template renders it.

        Args:
            index: which of the ranking's responses it ends with.
        """
        self._num_conversations += 1
        end = 0
        stripped = False
        for place, message in enumerate(conversation):
            content = message.content
            start = text.find(content, end)
            if start < 0:
                content = content.strip()
                start, stripped = text.find(content, end), True
            if start < 0:
                if not self._num_changed:
                    is_response = place == len(conversation) - 1
                    field = f"responses[{index}]" if is_response else f"prompt[{place}]"
                    begin = content[:_QUOTED] + ("…" if len(content) > _QUOTED else "")
                    self._example = f"{ranking.origin}: {field}, which begins with {begin!r}"
                self._num_changed += 1
                return
            end = start + len(content)
        self._num_stripped += stripped

    def notes(self) -> list[str]:
        """Return a line for each kind of change that was met."""
        of_all = f"of {self._num_conversations} conversations"
        notes = []
        if self._num_changed:
            notes.append(
                f"the chat template leaves out or changes a part of {self._num_changed} {of_all}, "
                f"which the model will not see; the first is {self._example}"
            )
        if self._num_stripped:
            notes.append(
                f"the chat template strips white space from the messages of {self._num_stripped} "
                f"{of_all}"
            )
        return notes
