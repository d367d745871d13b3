"""Names that data sets give to the standard roles of chat templates.

A template that does not know a role leaves its turns out or refuses them, so such a name has to
be translated. A role that is neither standard nor in the table is left to the template.
"""

_STANDARD = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_OTHER_NAMES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "gpt4": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}


def is_standard(name: str) -> bool:
    """Return whether `name` is a role that chat templates usually know."""
    return name in _STANDARD


def standard_role(name: str) -> str:
    """Return the standard role that `name` stands for; `name` itself if it stands for none."""
    plain = name.strip().lower()
    return plain if plain in _STANDARD else _OTHER_NAMES.get(plain, name)
