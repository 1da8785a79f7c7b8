"""What commands print."""

from collections.abc import Sequence


def print_table(lines: Sequence[tuple[str, ...]]) -> None:
    """Print rows of equal length, the first one the heading, in columns as wide as their widest text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
