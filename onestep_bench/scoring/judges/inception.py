"""Inception-v3 of 2015, the network of FID, through clean-fid (Parmar et al. 2022, arXiv 2104.11222).

Two protocols that differ in resizing: `inception` is clean-fid's `clean`; `inception-legacy` is its
`legacy_tensorflow`, the network's own bilinear resizing, in which most published figures of this field were measured.
"""

import torch

from onestep_bench.compat import import_torchvision
from onestep_bench.errors import OnestepError
from onestep_bench.scoring.judges import FeatureExtractor, Network, extractor
from onestep_bench.scoring.judges.resize import clean_resize
from onestep_bench.scoring.judges.weights import weights

URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


@extractor("inception")
def _clean(device: torch.device) -> FeatureExtractor:
    return _inception("inception", "clean", device)


@extractor("inception-legacy")
def _legacy(device: torch.device) -> FeatureExtractor:
    return _inception("inception-legacy", "legacy_tensorflow", device)


def _inception(name: str, mode: str, device: torch.device) -> FeatureExtractor:
    return FeatureExtractor(
        name,
        _network(mode, device),
        device=device,
        # On a CPU so few that what one layer writes is still in the caches when the next one reads it.
        batch=8 if device.type == "cpu" else 64,
        dim=2048,
        digest=SHA256,
        protocol=f"inception-2015@{SHA256[:12]}; clean-fid {mode}",
    )


def _network(mode: str, device: torch.device) -> Network:
    path = weights(URL, SHA256)
    import_torchvision()
    from cleanfid.inception_torchscript import InceptionV3W  # here, because it takes seconds and few need it

    try:
        wrapper = InceptionV3W(str(path.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    except RuntimeError as error:
        raise OnestepError(f"{path} is no TorchScript network; delete it to fetch a good copy") from error
    wrapper = wrapper.to(device).eval()

    def clean(images: torch.Tensor) -> torch.Tensor:
        # The wrapper's own arithmetic, in place: it would fill two more tensors of this size.
        return wrapper.layers(clean_resize(images, 299).sub_(128).div_(128)).view(len(images), -1)

    def judge(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = wrapper(images.float()) if wrapper.resize_inside else clean(images)
        # Without the bias, as TensorFlow's Inception score was always taken.
        return features, features @ wrapper.base.output.weight.T

    return judge
