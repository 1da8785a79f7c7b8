"""Scoring: how near images are to a reference, in the eyes of a judge, and what they cost.

Judges (feature networks) stand in `judges/`, a file each; metrics are functions of features or moments; `judging` joins
the two over a stream of images; `evaluate` scores a model into rows, whose fields `rows` describes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation": ["evaluate", "evaluate_images"],
        "judges": ["extractor", "FeatureExtractor"],
        "references": ["judge", "names", "panel", "protocol", "reference", "Statistics"],
        "metrics": [
            "class_gap",
            "Classes",
            "fd_infinity",
            "feature_cosine",
            "frechet_distance",
            "frechet_from_moments",
            "inception_score",
            "kid",
            "kid_subsets",
            "moments",
            "nearest",
            "neighbour_ratio",
            "precision_recall",
            "psnr",
        ],
        "qualities": ["METRICS", "metric"],
        "rows": ["FIELDS", "MIME", "mean"],
    },
)
