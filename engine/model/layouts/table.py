"""The one table of layouts."""

from collections.abc import Mapping

from kwise.engine.model.layouts.padded import PaddedLayout, SeparateLayout
from kwise.engine.model.layouts.protocol import Layout
from kwise.engine.model.layouts.trie import TrieLayout

LAYOUTS: Mapping[str, type[Layout]] = {
    "trie": TrieLayout,
    "padded": PaddedLayout,
    "separate": SeparateLayout,
}
"""The layouts by their name in the manifest."""
