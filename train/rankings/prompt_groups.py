"""Groups of prompts that count as one."""

from collections.abc import Callable, Hashable, Iterator

from kwise.train.rankings.prompt_key import prompt_key
from kwise.types import Conversation


class PromptGroups:
    """Puts prompts that count as one into one group.

    These are prompts that differ only in white space and case, and those with the same `key`, for
    instance the tokens. Two prompts that both count as one with a third are in its group as well.
    """

    def __init__(self, key: Callable[[Conversation], Hashable] = lambda prompt: prompt) -> None:
        self._key = key
        # The prompts of a group form a tree: the parent of the root is the root itself.
        self._parent: dict[int, int] = {}
        self._prompt_of_key: dict[Hashable, int] = {}

    def __iter__(self) -> Iterator[int]:
        """Return an iterator over the `prompt_key`s of the prompts."""
        return iter(self._parent)

    def add(self, prompt: Conversation) -> int:
        """Add a prompt, and return its `prompt_key`."""
        added = prompt_key(prompt)
        self._parent.setdefault(added, added)
        same = self._prompt_of_key.setdefault(self._key(prompt), added)
        self._parent[self.group_of(added)] = self.group_of(same)
        return added

    def group_of(self, prompt: int) -> int:
        """Return the root of the tree of a prompt, and make the path to it shorter.

        It may change when prompts are added.
        """
        while (parent := self._parent[prompt]) != prompt:
            self._parent[prompt] = self._parent[parent]
            prompt = parent
        return prompt
