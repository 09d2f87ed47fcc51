import json

import pytest
import torch

from biofound.core.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from biofound.errors import CheckpointError


def test_a_model_rebuilt_from_its_file_alone_gives_the_same_bits(path, model, x):
    rebuilt = load_checkpoint(path).build()
    assert rebuilt.config == model.config
    assert torch.equal(rebuilt.encoder(x), model.encoder(x))


def test_a_rebuilt_model_is_in_evaluation_mode(path):
    assert not any(module.training for module in load_checkpoint(path).build().modules())


def test_the_file_loads_with_weights_only_and_describes_itself_in_plain_json(path, data):
    content = torch.load(path, weights_only=True)
    assert content["channels"] == ["PPG", "ECG"]
    assert content["sfreq"] == 125.0
    assert content["filters"] == data.filters
    assert content["data_fingerprint"] == data.fingerprint
    assert content["synthetic"] is True
    assert content["versions"].keys() >= {"biofound", "torch", "granite-tsfm", "numpy", "python"}
    tensors = {"encoder_state_dict", "decoder_state_dict", "optimizer_state_dict", "resume"}
    json.dumps({name: value for name, value in content.items() if name not in tensors}, allow_nan=False)


def test_loading_gives_back_what_was_saved(path, checkpoint):
    loaded = load_checkpoint(path)
    for name in ("model", "data", "settings", "epoch", "step", "best_val_loss", "metrics", "versions"):
        assert getattr(loaded, name) == getattr(checkpoint, name)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"best_model\.pt: cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_file_of_text_is_named(path):
    path.write_bytes(b"time,ppg,ecg\n0,1,2\n")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "not a biofound checkpoint"),
        ([1, 2], "not a biofound checkpoint"),
        ({"kind": print}, "cannot be read"),  # a pickle that would run code
    ],
)
def test_a_file_of_something_else_is_named(path, content, message):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_future_format_is_refused_by_number(path):
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format_version": FORMAT_VERSION + 1}, path)
    with pytest.raises(
        CheckpointError, match=f"format {FORMAT_VERSION + 1}, but .* reads format {FORMAT_VERSION}"
    ):
        load_checkpoint(path)


def test_a_missing_file_and_a_missing_key_are_named(path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(path.with_name("other.pt"))
    content = torch.load(path, weights_only=True)
    del content["sfreq"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="sfreq"):
        load_checkpoint(path)


def test_no_tensor_may_be_missing_left_over_or_of_another_shape(path):
    for change in (
        lambda state: state.pop("mask_token"),
        lambda state: state.update(extra=torch.zeros(2)),
        lambda state: state.update(mask_token=torch.zeros(7)),
    ):
        loaded = load_checkpoint(path)
        change(loaded.encoder)
        with pytest.raises(CheckpointError, match="not those of the Encoder"):
            loaded.build()


def test_a_failing_write_leaves_the_old_file_whole_and_nothing_beside_it(path, checkpoint, monkeypatch):
    before = path.read_bytes()

    def half(content, file):
        file.write(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["best_model.pt"]
