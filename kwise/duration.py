"""Durations in lines of progress."""


def duration(seconds: float) -> str:
    """Return a duration for people: "2 h 05 min", "3 min 20 s" or "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
