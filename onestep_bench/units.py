"""Durations and sizes, from the text a person writes in YAML to numbers, and back to text."""

import re

# Not dask.utils, which reads the same texts: planning needs no Dask, and importing it takes longer than planning.
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1} | {
    f"{prefix}{end}": base**i for i, prefix in enumerate("KMGT", 1) for end, base in (("B", 1000), ("iB", 1024))
}

_MOST = 1e18  # of either, beyond which a number is nobody's bound


def seconds_of(value: object) -> float | None:
    """Seconds of a number (of seconds) or a text such as '90s', '10min', '2h' or '1d'; None if it is neither."""
    return _amount(value, _SECONDS)


def bytes_of(value: object) -> int | None:
    """Bytes of a number (of bytes) or a text such as '800MB', '8GB' or '8GiB'; None if it is neither."""
    amount = _amount(value, _BYTES)
    return None if amount is None else round(amount)


def _amount(value: object, units: dict[str, int]) -> float | None:
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
        if not found or found[2] not in units:
            return None
        value = float(found[1]) * units[found[2]]
    return float(value) if type(value) in (int, float) and 0 < value < _MOST else None


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def count(number: float) -> str:
    """'999', '12.3k', '32k', '1.2M'."""
    for unit in ("", "k"):
        if number < 1000:
            return f"{number:.1f}".removesuffix(".0") + unit
        number /= 1000
    return f"{number:.1f}".removesuffix(".0") + "M"


def size(count: float) -> str:
    """'999 B', '1.5 MB', '2.3 GB': powers of 1000."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
