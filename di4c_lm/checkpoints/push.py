"""Models on their way to the Hugging Face hub: whole, with a card, and without code."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.card import CARD, model_card
from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE
from di4c_lm.checkpoints.hub import first_line
from di4c_lm.checkpoints.load import domain_of, find, read_checkpoint
from di4c_lm.core.files import read_json
from di4c_lm.core.retry import is_network_failure, with_retries

_LEFT_OUT = (".*", "*.py", "*.pyc", "__pycache__")  # of a folder


def push_to_hub(
    folder: Path | str, name: str, *, revision: str | None = None, private: bool = True, licence: str = "unknown"
) -> str:
    """Upload an exported model as `name` on the hub (made where absent), on branch `revision`; returns the commit's address.

    A head over a frozen teacher of this machine goes with the teacher's weights. A model card is written unless the folder has a README.md;
    no code is sent. The token is the one of `hf auth login` or $HF_TOKEN.

    Args:
        folder: of the model, or of the run whose student it is.
        licence: of the card, as the hub writes them, such as `mit`.

    Raises:
        ValueError: the folder holds no checkpoint of ours, or the hub refuses the name, the branch, the licence or the token.
        ConnectionError: the hub did not answer after several attempts.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = find(Path(folder))
    absent = [file for file in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / file).is_file()]
    if absent:
        raise ValueError(f"{folder}: expected {WEIGHTS_FILE} and {CONFIG_FILE}, lacking {', '.join(absent)}")
    with TemporaryDirectory() as place:
        staged = stage(folder, Path(place) / "model", name, licence)

        def upload() -> str:
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            message = "Upload a di4c-lm checkpoint"
            commit = api.upload_folder(folder_path=staged, repo_id=name, revision=revision, commit_message=message)
            return str(commit.commit_url)

        try:
            return with_retries(upload, f"upload of {folder} to {name}", f"the folder is whole in {folder}")
        except (HfHubHTTPError, HFValidationError) as error:
            assert not is_network_failure(error)
            raise ValueError(f"{name}: the hub refuses the upload of {folder}: {first_line(error)}") from error


def stage(folder: Path, place: Path, name: str, licence: str) -> Path:
    """What is uploaded, in the folder `place`: links to the model's files, all its weights, and its card."""
    shutil.copytree(folder.resolve(), place, copy_function=os.symlink, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    backbone = read_json(folder / CONFIG_FILE).get("backbone")
    if backbone is not None and (folder / backbone["path"]).exists():
        own.write(place, read_checkpoint(folder, domain_of(folder)))
    if not (place / CARD).exists():
        model_card(folder, name, licence=licence).save(place / CARD)
    return place
