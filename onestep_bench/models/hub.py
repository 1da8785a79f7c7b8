"""Models to share: a folder of weights, description and card, on the Hugging Face Hub or in any folder.

What is taken in is data alone: two files by their names, weights by the hash that their description tells, and nothing
else that a repository may hold.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onestep_bench import store
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, needs_extra
from onestep_bench.models import checkpoints
from onestep_bench.models.checkpoints import CONFIG, WEIGHTS
from onestep_bench.models.model import Model
from onestep_bench.models.pretrained import CARD, find, load_pretrained
from onestep_bench.store.files import file_digest, new_folder, replacing, write_json, write_text

# What config.json says beside the network: how the model came about, and the hash of its weights.
ABOUT = ("model", "method", "settings", "cost", "source")
HASH = "weights_sha256"


def about(source: Path | str) -> tuple[Denoiser, dict]:
    """A model, as `load_pretrained` takes it, and what is known of how it came about, under names of `ABOUT`.

    Of the store: its key, method, settings and the cost of its lineage. Of a folder: what its description says.
    """
    path = find(source)
    denoiser = load_pretrained(path)
    if (path / store.META).exists():
        model = Model(store.Artifact(path))
        recipe = model.artifact.recipe
        return denoiser, {
            "model": path.name,
            "method": recipe["method"],
            "settings": model.settings,
            "cost": model.spent,
        }
    known = (
        checkpoints.describe(path) if path.is_dir() else {"source": {"name": path.name, "sha256": file_digest(path)}}
    )
    return denoiser, {name: known[name] for name in ABOUT if name in known}


def push(denoiser: Denoiser, told: dict, card: str, repo: str, *, private: bool = False) -> str:
    """Put a model into a repository of the Hub (USER/NAME, made if it is not there) or a folder; returns where.

    told: as `about` has it. A repository is a folder if it is written as one: folder/, ./folder, /folder or ~/folder.
    Raises OnestepError, in one line, without the extra `hub`, without a network, and where one may not write.
    """
    with tempfile.TemporaryDirectory(prefix="onestep-") as name:
        folder = Path(name)
        checkpoints.save_weights(denoiser, folder / WEIGHTS)
        write_json(folder / CONFIG, told | {HASH: file_digest(folder / WEIGHTS)} | denoiser.spec())
        write_text(folder / CARD, card)
        if is_folder(repo):
            return _put(folder, Path(repo).expanduser())
        with _reaching(repo) as api:
            url = api.create_repo(repo, exist_ok=True, private=private)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="onestep-bench push",
                allow_patterns=[WEIGHTS, CONFIG, CARD],
            )
            return str(url)


def pull(repo: str, out: Path | None = None, *, revision: str | None = None) -> Path:
    """Fetch a model that `push` put somewhere into a new folder, whole or not at all; returns the folder.

    out: by default the repository's own name. The weights are checked by their hash and loaded once; no other file than
    weights, description and card is taken. Raises OnestepError, in one line, as `push` does, for a repository that does
    not exist or holds no such model, for weights of another hash, and where the folder is not empty.
    """
    out = Path(out or repo.rstrip("/").rpartition("/")[2])
    with new_folder(out) as folder:
        _fetch(repo, folder, revision)
        _check(repo, folder)
    return out


def is_folder(repo: str) -> bool:
    """Whether a repository is written as a folder, and not as USER/NAME of the Hub."""
    return repo.endswith("/") or repo.startswith((".", "/", "~"))


def _put(folder: Path, target: Path) -> str:
    # The description last: who reads meanwhile sees weights of another hash, and refuses them.
    for name in (WEIGHTS, CARD, CONFIG):
        with replacing(target / name) as temporary:
            shutil.copyfile(folder / name, temporary)
    return str(target)


def _fetch(repo: str, folder: Path, revision: str | None) -> None:
    if not is_folder(repo):
        with _reaching(repo) as api, tempfile.TemporaryDirectory(prefix="onestep-") as place:
            for name in (CONFIG, WEIGHTS, CARD):
                found = api.hf_hub_download(repo, name, revision=revision, local_dir=place)
                shutil.copyfile(found, folder / name)
        return
    if revision:
        raise OnestepError(f"{repo} is a folder, which has no revisions; leave --revision out")
    source = Path(repo).expanduser()
    if not os.path.isdir(source):
        raise OnestepError(f"no folder {source}; correct the path, or name a repository of the Hub as USER/NAME")
    for name in (CONFIG, WEIGHTS, CARD):
        if not (source / name).is_file():
            raise OnestepError(f"{repo} holds no {name}; pull what `onestep-bench push` put there")
        shutil.copyfile(source / name, folder / name)


def _check(repo: str, folder: Path) -> None:
    try:
        told = checkpoints.describe(folder).get(HASH)
        _check_hash(repo, folder, told)
        checkpoints.load(folder)
    except OnestepError as error:  # which names a folder that will be gone
        raise OnestepError(str(error).replace(str(folder), repo)) from error


def _check_hash(repo: str, folder: Path, told: object) -> None:
    if told is None:
        raise OnestepError(
            f"{repo}: its {CONFIG} tells no hash of the weights; pull what `onestep-bench push` put there"
        )
    if (found := file_digest(folder / WEIGHTS)) != told:
        raise OnestepError(
            f"{repo}: {WEIGHTS} has SHA-256 {found}, and its {CONFIG} tells {told}; do not use these weights"
        )


@contextmanager
def _reaching(repo: str) -> Iterator:
    """The Hub's interface; what goes wrong with it inside this block is one line."""
    needs_extra("hub", f"the repository {repo}", "huggingface_hub")
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield _api()
    except errors.LocalTokenNotFoundError as error:
        raise OnestepError(f"{repo}: the Hub does not know who you are; {login}") from error
    except errors.GatedRepoError as error:
        raise OnestepError(f"{repo} is gated; ask for access on its page, then {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise OnestepError(f"no repository {repo}, or it is private; correct the name, or {login}") from error
    except errors.RevisionNotFoundError as error:
        raise OnestepError(f"{repo} has no such revision; leave --revision out, or correct it") from error
    except errors.LocalEntryNotFoundError as error:
        raise OnestepError(f"{repo}: the Hub cannot be reached; pull from a folder, or try again online") from error
    except errors.EntryNotFoundError as error:
        raise OnestepError(
            f"{repo} holds no model of onestep_bench; pull what `onestep-bench push` put there"
        ) from error
    except errors.HFValidationError as error:
        raise OnestepError(f"{repo!r} is no name of a repository; write USER/NAME, or a folder as ./folder") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise OnestepError(f"{repo}: the Hub does not let you ({status}); {login}") from error
        if status == 400:
            raise OnestepError(
                f"{repo}: the Hub does not take this: {_brief(error.server_message or error)}"
            ) from error
        raise OnestepError(f"{repo}: the Hub answers {status}; try again later") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise OnestepError(
            f"{repo}: the Hub cannot be reached ({_brief(error)}); push to a folder, or try again online"
        ) from error
    # Of what a card says, a licence that the Hub does not know say; and of the transfer of large files.
    except (ValueError, RuntimeError, errors.XetDownloadError) as error:
        raise OnestepError(f"{repo}: the Hub does not take this, or the transfer broke: {_brief(error)}") from error


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:160]


def _api():
    from huggingface_hub import HfApi

    return HfApi(library_name="onestep_bench")
