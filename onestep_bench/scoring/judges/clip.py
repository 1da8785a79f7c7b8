"""CLIP ViT-B/32 through clean-fid: a judge that never saw ImageNet's labels.

Kynkaanniemi et al. 2023, arXiv 2203.06026.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from onestep_bench.compat import import_clip, import_torchvision
from onestep_bench.errors import OnestepError, needs_extra
from onestep_bench.scoring.judges import FeatureExtractor, extractor
from onestep_bench.scoring.judges.weights import weights

SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
URL = f"https://openaipublic.azureedge.net/clip/models/{SHA256}/ViT-B-32.pt"


@extractor("clip")
def _clip(device: torch.device) -> FeatureExtractor:
    import_torchvision()
    needs_extra("clip", "the 'clip' judge", "clip")
    import_clip()
    from cleanfid.clip_features import CLIP_fx, img_preprocess_clip

    path = weights(URL, SHA256)
    try:
        network = CLIP_fx(str(path), device=str(device))
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise OnestepError(f"{path} holds no CLIP network; delete it to fetch a good copy") from error

    def judge(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        # By Pillow, as clean-fid does it: torch's resizing of whole batches rounds some pixels otherwise.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            resized = torch.from_numpy(np.stack(list(pool.map(img_preprocess_clip, pixels))))
        return network(resized.permute(0, 3, 1, 2).float().to(device)), None

    return FeatureExtractor(
        "clip",
        judge,
        device=device,
        batch=64,
        dim=network.model.visual.output_dim,
        digest=SHA256,
        protocol=f"clip-vit-b-32@{SHA256[:12]}; clean-fid",
    )
