"""DINOv2 ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193): a judge nearer to human eyes (Stein et al. 2023, 2306.04675).

Its code comes from torch hub at a fixed commit, its weights from their own address.
"""

from pathlib import Path

import torch

from onestep_bench.errors import OnestepError
from onestep_bench.scoring.judges import FeatureExtractor, extractor
from onestep_bench.scoring.judges.resize import clean_resize
from onestep_bench.scoring.judges.weights import weights

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
SHA256 = "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
COMMIT = "e1277af2ba9496fbadf7aec6eba56e8d882d1e35"
_SIZE, _MEAN, _STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@extractor("dinov2")
def _dinov2(device: torch.device) -> FeatureExtractor:
    path = weights(URL, SHA256)
    network = _code()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise anything
        raise OnestepError(f"{path} does not fit DINOv2 ViT-L/14; delete it to fetch a good copy") from error
    network = network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (_MEAN, _STD))

    def judge(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return network((clean_resize(images, _SIZE) / 255 - mean) / std), None

    return FeatureExtractor(
        "dinov2",
        judge,
        device=device,
        batch=32,
        dim=network.embed_dim,
        digest=SHA256,
        protocol=f"dinov2-vit-l-14@{SHA256[:12]}; clean-fid's resize to {_SIZE}",
    )


def _code() -> torch.nn.Module:
    repository = f"facebookresearch/dinov2:{COMMIT}"
    try:
        return torch.hub.load(
            repository, "dinov2_vitl14", pretrained=False, trust_repo=True, skip_validation=True, verbose=False
        )
    except (OSError, RuntimeError, ImportError) as error:
        place = Path(torch.hub.get_dir()) / f"facebookresearch_dinov2_{COMMIT}"
        raise OnestepError(
            f"the code of dinov2 cannot be loaded ({type(error).__name__}); put a checkout of github.com/"
            f"facebookresearch/dinov2 at commit {COMMIT} into {place}"
        ) from error
