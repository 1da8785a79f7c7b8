"""A foreign model becomes a folder of ours: weights, description, and a card that says where it comes from."""

from pathlib import Path

from onestep_bench import checkpoints, cost, networks
from onestep_bench.denoiser import Denoiser
from onestep_bench.files import file_digest, write_text
from onestep_bench.zoo.slimflow import AnySize

CARD = "README.md"


def import_model(source: str, out: Path, *, format: str | None = None, resolution: int | None = None) -> list[str]:
    """Write `model.safetensors`, `config.json` and a model card into `out`; returns what there is to say of it.

    source, format and resolution: as `checkpoints.load_pretrained` takes them, and with its errors. config.json holds
    the network, how it is called, its path, and the name and SHA-256 of the file it was read from.
    """
    file = checkpoints.find(source)
    denoiser = checkpoints.load_pretrained(file, format=format, resolution=resolution)
    weights = file / checkpoints.WEIGHTS if file.is_dir() else file
    origin = {"name": str(source), "file": weights.name, "sha256": file_digest(weights)}
    checkpoints.save(denoiser, out, path=denoiser.path.spec(), source=origin)
    facts = _facts(denoiser)
    write_text(out / CARD, _card(out.resolve().name, facts, origin))
    told = [f"{out}: " + ", ".join(facts.values())]
    if isinstance(denoiser.net, AnySize):
        side = denoiser.net.config["img_resolution"]
        told.append(f"the file does not say the size of its images; {side}x{side} is that of SlimFlow's releases")
        told.append("of this shape, and --resolution says otherwise")
    return told


def _facts(denoiser: Denoiser) -> dict[str, str]:
    config, native = denoiser.net.config, denoiser.native.spec()
    side, classes = config["img_resolution"], denoiser.num_classes
    options = ", ".join(f"{key} {value}" for key, value in native.items() if key in ("sigma_data", "boundary"))
    return {
        "Network": f"{config['arch']} of size {networks.size_of(denoiser.net)}",
        "Parameters": f"{cost.parameters(denoiser.net):,} parameters",
        "Images": f"{config['in_channels']}x{side}x{side} images",
        "Classes": f"{classes} classes" if classes else "no classes",
        "Preconditioning": f"preconditioning {native['name']}" + (f" ({options})" if options else ""),
        "Path": f"path {denoiser.path.name}",
    }


def _card(name: str, facts: dict[str, str], origin: dict[str, str]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""# {name}

A diffusion model for `onestep_bench`, read from `{origin["file"]}` (`{origin["name"]}`).

| | |
|---|---|
{rows}
| SHA-256 of the source | `{origin["sha256"]}` |

The weights are those of the source, the averaged ones where it has both, and stay under its licence. What their
training cost is not known, and scores count it as nothing.

```python
from onestep_bench.checkpoints import load_pretrained

denoiser = load_pretrained("{name}")  # this folder
```
"""
