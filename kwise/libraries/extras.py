"""The command that installs the packages of an extra. pip cannot find kwise on PyPI yet."""


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of kwise, for a message; "" is kwise itself."""
    return f"pip install '.{f'[{extra}]' if extra else ''}' in a clone of kwise"
