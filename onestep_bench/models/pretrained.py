"""Models that were not trained here: read from the formats other people release theirs in, or imported as a folder."""

import difflib
import os
import sys
from pathlib import Path
from urllib.parse import urlparse

from onestep_bench import networks, store
from onestep_bench.data import pickles
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.models import checkpoints, cost, zoo
from onestep_bench.models.checkpoints import Misfit, load, with_weights
from onestep_bench.models.zoo import edm, slimflow
from onestep_bench.models.zoo.slimflow import AnySize
from onestep_bench.store.artifacts import few, one_key
from onestep_bench.store.downloads import fetch
from onestep_bench.store.files import file_digest, new_folder, write_text

FORMATS = ("edm", "gdd", "slimflow")
_KIND = "model-"  # how the store key of a model begins


def load_pretrained(source: Path | str, *, format: str | None = None, resolution: int | None = None) -> Denoiser:
    """A model that was not trained here, on the CPU, in eval mode, without gradients.

    source: a folder of ours, a file, a store key or a unique start of it ('model-1a2b'), a name of `zoo.NAMES`, or an
    https address; the last two are downloaded once, into `models` in the data folder. Files are pickles of NVlabs/edm
    and GDD (D2O), and SlimFlow's .pth; which of them it is can be read from the file, and must be `format` ('edm',
    'gdd', 'slimflow') if that is given. Nothing in a file is run. resolution: side of the images of a SlimFlow DDPM++,
    which its files do not say; without it the network takes images of any side. Networks that take augmentation labels
    (EDM's) are loaded with the weights for them, and used without. Raises OnestepError, in one line, for whatever
    cannot be read whole.
    """
    path = find(source)
    if path.is_dir():
        return load(path)
    content = pickles.read(path)
    found = _format_of(content, path)
    if format not in (None, found) and {format, found} != {"edm", "gdd"}:
        raise OnestepError(f"{path} is in the format {found}, not {format}; leave the format out")
    try:
        model = slimflow.released(content, resolution) if found == "slimflow" else edm.released(content)
        net = with_weights(model.config, model.state, model.make)
    except OnestepError as error:
        raise OnestepError(f"{path}: {error}") from error
    except Misfit as misfit:
        raise OnestepError(f"{path}: the weights do not fit the network it describes: {misfit}") from misfit
    # What a file holds in the place of a name, a list or a tensor may be anything.
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise OnestepError(f"{path} is not laid out as {found} files are ({type(error).__name__})") from error
    return Denoiser(net, model.native).eval().requires_grad_(False)


def find(source: Path | str) -> Path:
    """The folder or file of a model, downloaded if it is a name of `zoo.NAMES` or an https address.

    A store key may be as a score row has it, with the path that the model was seen on: it is said that this is dropped.
    """
    if str(source) in zoo.NAMES:
        source = f"{zoo.EDM_URL}{source}.pkl"
    if str(source).startswith("https://"):
        data = Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
        target = data / "models" / Path(urlparse(str(source)).path).name
        fetch(target, [str(source)])
        return target
    path = Path(source).expanduser()
    if os.path.exists(path):
        return path
    if is_key(source):
        key, _, seen = str(source).partition("@")
        for mark, what, ask in (("#", "a snapshot", "snapshots"), ("~", "another average", "averages")):
            if mark in key:
                raise OnestepError(f"{source} is {what}; name {key.partition(mark)[0]}, the model, and ask its `{ask}`")
        found = _stored(key)
        if seen:
            line = f"{source} is {found.name} seen on another path; this is the model itself, on its own"
            print(line, file=sys.stderr)
        return found
    what = "neither a file, a folder, a store key nor an https address"
    raise OnestepError(f"no model {source}: {what}{_hint(str(source))}")


def is_key(source: Path | str) -> bool:
    """Whether this is what keys of models in the store look like, or the start of one."""
    return str(source).startswith(_KIND) and "/" not in str(source)


def _stored(start: str) -> Path:
    """The one model of the store whose key begins like this."""
    root = store.root()
    # What is in the making, or damaged, has a suffix.
    keys = sorted(path.name for path in root.glob(f"{_KIND}*") if "." not in path.name)
    if found := one_key(start, keys):
        return root / found
    if os.path.exists(root / f"{start}.partial"):
        raise OnestepError(f"{start} is not whole yet, or was left by a killed run; run again what trains it")
    if not keys:
        raise OnestepError(f"no model {start}: the store {root} has none; name another with --store or ONESTEP_STORE")
    # All begin with the same word, which would make any two of them look alike.
    starts = dict.fromkeys(key[len(_KIND) : len(start)] for key in keys)
    near = difflib.get_close_matches(start.removeprefix(_KIND), starts, n=1)
    hint = f"did you mean {few([key for key in keys if key.startswith(_KIND + near[0])])}?" if near else ""
    raise OnestepError(f"no model {start} in the store {root}; {hint or 'see onestep-bench store ls'}")


def _hint(name: str) -> str:
    return "; correct the path" if "/" in name else near_miss(name, zoo.NAMES)


def _format_of(content: object, path: Path) -> str:
    if slimflow.is_slimflow(content):
        return "slimflow"
    if edm.is_edm(content):
        return "gdd" if content["ema"].name in edm.GDD else "edm"
    raise OnestepError(f"{path} holds no model of a known format; known: {', '.join(FORMATS)}")


CARD = "README.md"


def import_model(source: str, out: Path, *, format: str | None = None, resolution: int | None = None) -> list[str]:
    """Write `model.safetensors`, `config.json` and a model card into `out`, a new folder, or nothing.

    Returns what there is to say of it. source, format and resolution: as `models.load_pretrained` takes them, and with
    its errors. config.json holds the network, how it is called, its path, and the name and SHA-256 of the file it was
    read from.
    """
    file = find(source)
    denoiser = load_pretrained(file, format=format, resolution=resolution)
    weights = file / checkpoints.WEIGHTS if file.is_dir() else file
    origin = {"name": str(source), "file": weights.name, "sha256": file_digest(weights)}
    about = facts(denoiser)
    with new_folder(out) as folder:
        checkpoints.save(denoiser, folder, path=denoiser.path.spec(), source=origin)
        write_text(folder / CARD, _card(out.resolve().name, about, origin))
    told = [f"{out}: " + ", ".join(about.values())]
    if isinstance(denoiser.net, AnySize):
        side = denoiser.net.config["img_resolution"]
        told.append(f"the file does not say the size of its images; {side}x{side} is that of SlimFlow's releases")
        told.append("of this shape, and --resolution says otherwise")
    return told


def facts(denoiser: Denoiser) -> dict[str, str]:
    """What a card says of a network, in words."""
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
from onestep_bench.models import load_pretrained

denoiser = load_pretrained("{name}")  # this folder
```
"""
