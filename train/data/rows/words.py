"""Places where a text may be cut between words, also in scripts that write no spaces."""

import unicodedata

# Blocks of scripts without spaces between words: Thai and Lao, Burmese, Khmer, and from the
# radicals of Chinese to the ideographs (with kana and punctuation), compatibility forms, full-width
# forms, further ideographs. Korean writes spaces.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)


def is_between_words(text: str, position: int) -> bool:
    """Return whether a word may end before `text[position]`.

    It may after white space, and between two characters of which one belongs to a script without
    spaces. A mark, such as a vowel sign in Thai, stays with its letter.
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if before.isspace():
        return True
    if unicodedata.category(after).startswith("M"):
        return False
    return _is_without_spaces(before) or _is_without_spaces(after)


def _is_without_spaces(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _WITHOUT_SPACES)
