"""Looks of methods: fixed, told apart by colour-blind readers, legible on light and on dark."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.lines import Line2D

from onestep_bench.known.catalogue import known
from onestep_bench.report import colours
from onestep_bench.report.colours import HUES, KIN, METHODS, SHAPES, colour, look, looks, marker, shape

# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
BLIND = {
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(code):
    parts = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(code):
    return linear(code) @ [0.2126, 0.7152, 0.0722]


def lab(rgb):
    """CIE L*a*b* of linear sRGB."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(matrix @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_colour_is_legible_on_white_and_on_dark():
    shades = [shade for hue in HUES.values() for shade in hue] + [one.colour for one in colours.TEACHERS.values()]
    dark = luminance("#16181d")
    for shade in shades:
        assert 1.05 / (luminance(shade) + 0.05) >= 3, shade
        assert (luminance(shade) + 0.05) / (dark + 0.05) >= 3, shade


@pytest.mark.parametrize("kind", BLIND)
def test_hues_of_two_kins_differ_to_the_colour_blind(kind):
    seen = {name: lab(BLIND[kind] @ linear(hue.plain)) for name, hue in HUES.items()}
    of = {name: kin for kin, own in KIN.items() for name in own}
    for one, other in combinations(HUES, 2):
        if of[one] != of[other]:
            assert np.linalg.norm(seen[one] - seen[other]) > 20, (one, other)


def test_methods_whose_hues_are_kin_differ_in_their_markers():
    of = {hue.plain: kin for kin, own in KIN.items() for hue in own.values()}
    assert len({(of[one.colour], one.marker) for one in METHODS.values()}) == len(METHODS) >= 30


def test_every_method_of_the_package_has_a_look_that_somebody_chose():
    fixed = set(METHODS) | {"teacher", "meanflow, distilled", "facm, distilled"}
    assert {colours._name(method) for method in known("methods")} <= fixed


def test_a_label_and_its_method_look_the_same():
    assert look("GDD") == look("gdd")
    assert look("SlimFlow") == look("flow-guided-distillation")
    assert look("MeanFlow, distilled") == look("meanflow-distillation")
    assert (colour("GDD"), marker("GDD"), shape("GDD")) == ("#d8561c", "o", "circle")


def test_a_variant_has_its_methods_hue_and_a_look_of_its_own():
    for variant in ("KD, 898 pairs", "KD (data)", "KD on data"):
        assert colour(variant) in next(hue for hue in HUES.values() if hue.plain == colour("KD"))[1:]
    assert colour("GDD-I") != colour("GDD")
    assert colour("mine (lr 0.001)") in next(hue for hue in HUES.values() if hue.plain == colour("mine"))


def test_teachers_are_grey():
    for label in ("teacher (heun)", "teacher (DDIM, even map)", "teacher", "edm"):
        red, green, blue = linear(colour(label))
        assert red == green == blue


@given(st.lists(st.text(min_size=1, max_size=12), max_size=20))
def test_known_methods_look_the_same_whatever_is_beside_them(others):
    found = looks([*others, "GDD", "KD", "teacher (heun)"])
    assert (found["GDD"], found["KD"], found["teacher (heun)"]) == (look("GDD"), look("KD"), look("teacher (heun)"))


@given(st.integers(0, 10**6))
def test_forty_labels_that_nobody_foresaw_are_told_apart(start):
    labels = [f"method {start + i}" for i in range(40)]
    assert len(set(looks(labels).values())) == 40


def test_ten_variants_of_one_method_are_told_apart():
    found = looks(["2-RF++", *(f"2-RF++ (lr {i})" for i in range(10))])
    assert len(set(found.values())) == 11


def test_every_marker_is_one_that_both_libraries_know():
    built_in = {
        "circle",
        "square",
        "cross",
        "diamond",
        "triangle-up",
        "triangle-down",
        "triangle-left",
        "triangle-right",
    }
    assert set(SHAPES) <= set(Line2D.markers)
    assert set(SHAPES.values()) <= built_in  # of Vega-Lite's `shape` of a point
