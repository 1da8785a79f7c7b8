"""The rows of one figure: of one data set, judge, split and protocol, or a line that says what there is."""

import pandas as pd
from tiny import row

from onestep_bench.report import judged_by


def test_of_several_protocols_that_of_the_most_rows(refuses):
    rows = [row(protocol="few", fid=1.0), *(row(protocol="many", fid=2.0, seed=seed) for seed in (0, 1))]
    rows += [row(features="pixels", split="test"), row(dataset="mnist", features="pixels")]
    own = judged_by(pd.DataFrame(rows), split="train")
    assert set(own["protocol"]) == {"many"}
    assert set(own["features"]) == {"digits"}  # before pixels, which know no classes
    assert set(judged_by(pd.DataFrame(rows), judge="pixels")["split"]) == {"test"}
    with refuses("no scores of digits by 'clip'", "digits by pixels, test; mnist by pixels, train"):
        judged_by(pd.DataFrame(rows), judge="clip")
    with refuses("there are no scores; name a folder"):
        judged_by(pd.DataFrame())
