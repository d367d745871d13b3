"""Keep full garbage collections short, and return free memory to the operating system.

A full collection visits every container object of the process and stops the event loop: 16 to 28 ms
with the objects that imports, tokenizer and model leave behind, which never become garbage. Frozen
objects are not visited.
"""

import ctypes
import gc


def freeze_heap() -> None:
    """Collect garbage, and exempt all objects that are left from later collections.

    Call this after a model is loaded, and again after one was replaced, so that it is freed.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def return_memory() -> None:
    """Return memory that the C library holds free, where that is glibc.

    glibc keeps the weights of a model that was freed: 460 MB of SmolLM2, and as much again after
    each further load.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
