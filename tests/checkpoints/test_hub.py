"""Against a local server that answers as the hub does, failures included."""

import logging

import pytest

from di4c_lm.checkpoints.hub import snapshot
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from tests.checkpoints.formats import LENGTH, mdlm_config, named, write_folder
from tests.checkpoints.helpers import assert_same_tensors, tiny
from tests.checkpoints.hub_server import MDLM, REVISION, SDTT, files_of, point_at


def test_a_model_is_loaded_by_name_and_its_code_is_not_even_fetched(hub, tmp_path):
    assert_same_tensors(load_checkpoint(MDLM).tensors(), tiny().tensors())
    assert not list((tmp_path / "cache").rglob("*.py"))
    assert not any("modeling" in request for request in hub.requests)


@pytest.mark.parametrize("both", [True, False])
def test_a_pickled_model_is_fetched_only_where_there_is_no_other(hub, tmp_path, both):
    pickled = write_folder(tmp_path / "bin", named(tiny(seed=2)), mdlm_config(tiny()), pickled=True)
    files = hub.files[(MDLM, "main")]
    hub.files[(MDLM, "main")] = {**(files if both else {}), **files_of(pickled)}
    loaded = load_checkpoint(MDLM)
    assert_same_tensors(loaded.tensors(), tiny(seed=0 if both else 2).tensors())
    assert any("pytorch_model.bin" in request for request in hub.requests) != both


def test_a_revision_is_a_model(hub):
    weights = read_checkpoint(SDTT, revision=REVISION)
    assert_same_tensors(weights.build(SDTT).tensors(), tiny(seed=7).tensors())
    assert weights.sizes["length"] == LENGTH


@pytest.mark.parametrize("failures", [[503], [503, 503], [429, 500]])
def test_failures_are_tried_again(hub, failures):
    hub.failures = list(failures)
    assert_same_tensors(load_checkpoint(MDLM).tensors(), tiny().tensors())
    assert hub.failures == []


@pytest.mark.parametrize("request_part", ["HEAD ", "GET /kuleshov-group/mdlm-owt/resolve", "/tree/"])
def test_a_failure_half_way_is_tried_again(hub, request_part):
    hub.failures, hub.failing = [503, 503], request_part
    assert_same_tensors(load_checkpoint(MDLM).tensors(), tiny().tensors())
    assert hub.failures == []


def test_an_error_after_all_attempts_names_the_offline_way(hub):
    hub.failures = [503] * 100
    with pytest.raises(ConnectionError, match="no answer after 3 attempts") as caught:
        load_checkpoint(MDLM)
    assert MDLM in str(caught.value)
    assert "teacher=<folder with model.safetensors" in str(caught.value)


def test_a_server_that_is_not_there_names_the_offline_way(hub, monkeypatch):
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ConnectionError, match="Offline: teacher=<folder"):
        load_checkpoint(MDLM)


def test_a_cached_model_serves_offline(hub, monkeypatch):
    load_checkpoint(MDLM)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_same_tensors(load_checkpoint(MDLM).tensors(), tiny().tensors())
    assert hub.requests == []
    with pytest.raises(ConnectionError, match="no answer after 1 attempts.*Offline: teacher="):
        load_checkpoint(SDTT, revision=REVISION)


@pytest.mark.parametrize("name, revision", [("nobody/nothing", None), (SDTT, None), (MDLM, "lost"), ("a..b/c", None)])
def test_what_is_not_there_is_named_at_once(hub, name, revision):
    with pytest.raises(ValueError) as caught:
        load_checkpoint(name, revision=revision)
    assert f"{name} at revision {revision or 'main'}" in str(caught.value)
    assert "teacher=<folder with model.safetensors" in str(caught.value)
    assert len(hub.requests) <= 1


def test_a_repository_without_weights_says_what_it_holds(hub):
    del hub.files[(MDLM, "main")]["model.safetensors"]
    with pytest.raises(
        ValueError, match="expected model.safetensors or pytorch_model.bin, or their .index.json, found config.json"
    ):
        load_checkpoint(MDLM)


def test_attempts_are_logged(hub, caplog):
    hub.failures = [503] * 100
    with caplog.at_level(logging.WARNING, logger="di4c_lm"), pytest.raises(ConnectionError):
        snapshot(MDLM)
    assert caplog.text.count("trying again in") == 2
