"""A hub on this machine."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.formats import mdlm_config, named, training_config, write_folder
from tests.checkpoints.helpers import tiny
from tests.checkpoints.hub_server import MDLM, REVISION, SDTT, Hub, files_of, point_at, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with MDLM's model, and SDTT's in one revision besides main; an empty cache; no wait between attempts."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    first, seventh = tiny(), tiny(seed=7)
    with serving() as served:
        point_at(served.url, monkeypatch)
        mdlm = write_folder(tmp_path / "mdlm", named(first), mdlm_config(first))
        (mdlm / "modeling_mdlm.py").write_text("raise SystemExit")
        served.files[(MDLM, "main")] = files_of(mdlm)
        round_7 = write_folder(tmp_path / "sdtt", named(seventh, "backbone.backbone."), training_config(seventh))
        served.files[(SDTT, REVISION)] = files_of(round_7)
        yield served
