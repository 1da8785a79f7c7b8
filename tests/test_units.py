import pytest

from onestep_bench.units import bytes_of, count, duration, seconds_of, size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90), (0.5, 0.5), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400), ("2d", 172800),
        ("h", None), ("2 fortnights", None), ("2", None), (0, None), (-1, None), ("0s", None), (True, None),
        (float("inf"), None), (float("nan"), None), (10**400, None), ("9" * 400 + "s", None), ([1], None),
    ],
)  # fmt: skip
def test_seconds(value, seconds):
    assert seconds_of(value) == seconds


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (1024, 1024),
        ("800MB", 800_000_000),
        ("8GiB", 8 * 1024**3),
        ("1.5 KB", 1500),
        ("12 B", 12),
        ("8G", None),
        (float("inf"), None),
    ],
)
def test_bytes(value, count):
    assert bytes_of(value) == count


def test_durations_sizes_and_counts_in_words():
    assert [duration(s) for s in (0.44, 12.3, 59.7, 200, 7500)] == ["0.4 s", "12 s", "60 s", "3 min 20 s", "2 h 5 min"]
    assert [size(n) for n in (0, 999, 1500, 2.3e9, 5e12)] == ["0 B", "999 B", "1.5 KB", "2.3 GB", "5.0 TB"]
    assert [count(n) for n in (0, 999, 12_300, 32_000, 2.5e6, 3e9)] == ["0", "999", "12.3k", "32k", "2.5M", "3000M"]
