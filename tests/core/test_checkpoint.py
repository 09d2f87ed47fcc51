import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from biofound.errors import CheckpointError
from tests.chain import files_end_at


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


def test_one_flipped_bit_in_a_tensor_is_refused_by_the_tensors_name(path):
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    tensors = [
        (f"{part}.{name}", tensor)
        for part in ("encoder_state_dict", "decoder_state_dict")
        for name, tensor in state[part].items()
    ]
    for name, tensor in tensors:
        content = tensor.numpy().tobytes()
        if whole.count(content) > 1:
            continue  # zeros or ones, as in another tensor
        damaged = bytearray(whole)
        damaged[whole.index(content)] ^= 1  # the last bit of the first number's mantissa
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"best_model\.pt: {name}: damaged"):
            load_checkpoint(path)


def test_one_flipped_bit_anywhere_never_loads_anything_else(path, checkpoint):
    whole, random = path.read_bytes(), np.random.default_rng(0)
    pickled = range(whole.index(b"data.pkl"), whole.index(b".format_version"))
    places = [*random.integers(0, len(whole), 12), *random.choice(pickled, 12), *range(-22, 0, 4)]
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = vars(load_checkpoint(path))
        except CheckpointError:
            refused += 1
            continue
        for name, value in vars(checkpoint).items():
            if name in ("encoder", "decoder"):
                assert value.keys() == loaded[name].keys()
                assert all(torch.equal(tensor, loaded[name][key]) for key, tensor in value.items())
            else:
                assert value == loaded[name]
    assert refused > len(places) / 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "holds NaN or infinity"),
        (torch.tensor([1.0, -float("inf")]), "holds NaN or infinity"),
        (torch.zeros(8, dtype=torch.float64), "float32, got torch.float64"),
        (torch.zeros(8, dtype=torch.bfloat16), "float32, got torch.bfloat16"),
        (torch.zeros(1).expand(8), "another layout"),
        (torch.zeros(8).to_sparse(), "another layout"),
        ([0.0] * 8, "expected a tensor, got list"),
        (None, "expected a tensor, got NoneType"),
    ],
)
def test_what_is_no_sound_tensor_is_refused_by_name(path, value, message):
    content = torch.load(path, weights_only=True)
    content["encoder_state_dict"]["mask_token"] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"encoder_state_dict\.mask_token: .*{message}"):
        load_checkpoint(path)


def test_the_optimizers_tensors_are_judged_too(path, checkpoint):
    moments = {"state": {3: {"exp_avg": torch.tensor([float("nan")])}}}
    save_checkpoint(path, replace(checkpoint, optimizer=moments))
    with pytest.raises(CheckpointError, match=r"optimizer_state_dict\.state\.3\.exp_avg: holds NaN"):
        load_checkpoint(path)


def test_a_model_that_cannot_be_made_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="the model that it describes cannot be made"):
        replace(checkpoint, model=replace(checkpoint.model, d_model=10**30)).build()


def test_values_beside_the_tensors_have_a_digest_too(path):
    content = torch.load(path, weights_only=True)
    torch.save({**content, "sfreq": 126.0}, path)
    with pytest.raises(CheckpointError, match="damaged, the values beside the tensors"):
        load_checkpoint(path)


def test_a_path_may_be_text(path):
    assert load_checkpoint(str(path)).step == load_checkpoint(path).step


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


def test_on_a_disk_that_is_full_at_any_byte_the_systems_own_error_arrives_and_the_old_file_stays(
    path, checkpoint
):
    before = path.read_bytes()
    for size in [*range(0, len(before), len(before) // 30), len(before) - 1]:
        with files_end_at(size), pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            save_checkpoint(path, checkpoint)
        assert raised.value.errno == errno.EFBIG
        assert raised.value.filename == str(path)
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == ["best_model.pt"]
    with files_end_at(len(before)):
        save_checkpoint(path, checkpoint)
