from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import googlenet

from qat.errors import CheckpointError, ConfigError, NumericsError
from qat.models import ResNetCifar, build, load_float


def net(num_classes=10, seed=1):
    """A small net of which no two tensors are equal, running statistics included."""
    torch.manual_seed(seed)
    model = ResNetCifar(8, num_classes)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
        else:
            value.add_(seed)
    return model


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model, state):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture
def trained():
    return snapshot(net(seed=2))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.th"


@pytest.fixture
def model():
    return net(seed=3)


@pytest.fixture
def untouched(model):
    """Holds after the test that nothing in `model` moved: an error must not leave it half-loaded."""
    before = snapshot(model)
    yield
    assert_same(model, before)


@pytest.mark.parametrize(
    ("prefix", "wrap", "line"),
    [
        ("", lambda state: state, "(plain state dict)"),
        ("module.", lambda state: {"state_dict": state}, "(dict with state_dict; prefix 'module.' stripped)"),
        (
            "net.",
            lambda state: {"state_dict": state, "pytorch-lightning_version": "2.6.0"},
            "(Lightning checkpoint; prefix 'net.' stripped)",
        ),
        ("model._orig_mod.", lambda state: state, "(plain state dict; prefix 'model._orig_mod.' stripped)"),
        (
            "_orig_mod.module.model.",
            lambda state: state,
            "(plain state dict; prefix '_orig_mod.module.model.' stripped)",
        ),
    ],
)
def test_every_form_loads_every_tensor(path, model, trained, prefix, wrap, line):
    torch.save(wrap(prefixed(prefix, trained)), path)
    report = load_float(model, path)
    assert_same(model, trained)
    assert str(report) == f"loaded {report.total} of {report.total} tensors from x.th {line}"
    assert report.total == sum("num_batches_tracked" not in key for key in trained)


def test_safetensors(tmp_path, model, trained):
    save_file(prefixed("module.", trained), tmp_path / "x.safetensors")
    assert load_float(model, tmp_path / "x.safetensors").kind == "safetensors"
    assert_same(model, trained)


def test_parameters_stay_the_same_objects_and_keep_their_flags(path, model, trained):
    torch.save(trained, path)
    model.fc.requires_grad_(False)
    before = {id(p): p.requires_grad for p in model.parameters()}
    load_float(model, path)
    assert {id(p): p.requires_grad for p in model.parameters()} == before
    assert all(p.grad_fn is None for p in model.parameters())


def test_rename(path, model, trained):
    torch.save({key.replace("fc.", "linear."): value for key, value in trained.items()}, path)
    report = load_float(model, path, rename={"linear": "fc"})
    assert_same(model, trained)
    assert str(report).endswith("(plain state dict; renamed linear -> fc)")


def test_batch_counters_may_be_missing(path, model, trained):
    counters = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("tracked")}
    torch.save({key: value for key, value in trained.items() if key not in counters}, path)
    report = load_float(model, path)
    assert report.matched == report.total == len(trained) - len(counters)
    assert_same(model, trained | counters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_cast(path, model, trained, dtype):
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in trained.items()}
    torch.save(stored, path)
    report = load_float(model, path)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    assert_same(model, {key: value.to(trained[key].dtype) for key, value in stored.items()})
    assert f"cast from {str(dtype).removeprefix('torch.')}" in str(report)


def test_other_parts_of_a_lightning_module_are_left_out(path, model, trained):
    state = prefixed("net.", trained) | {"teacher.fc.weight": torch.zeros(3), "loss.weight": torch.zeros(10)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0"}, path)
    report = load_float(model, path)
    assert_same(model, trained)
    assert report.outside == ("teacher.fc.weight", "loss.weight")
    assert str(report).endswith("; 2 outside the model)")


def test_a_model_whose_submodule_is_called_model(path, trained):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net(seed=3)

    for prefix in ("", "model.", "module."):
        wrapped = Wrapped()
        torch.save(prefixed(f"{prefix}model.", trained), path)
        assert load_float(wrapped, path).prefix == prefix
        assert_same(wrapped.model, trained)


@pytest.mark.usefixtures("untouched")
def test_fits_some(path, model, trained):
    state = {key.replace("fc.", "linear."): value for key, value in trained.items()}
    state["layer1.0.conv1.weight"] = torch.zeros(16, 16, 5, 5)
    torch.save(state, path)
    total = sum("tracked" not in key for key in trained)
    message = (
        rf"fits {total - 3} of {total} tensors of ResNetCifar\s+missing: 'fc\.weight' \[10, 64\], 'fc\.bias' \[10\]"
        r"\s+unexpected: 'linear\.weight' \[10, 64\], 'linear\.bias' \[10\]"
        r"\s+of another shape: 'layer1\.0\.conv1\.weight' \[16, 16, 5, 5\] in the file, \[16, 16, 3, 3\] in the model"
        r"\s+Use init_strict=false .*try init_rename=\{linear: fc\}"
    )
    with pytest.raises(CheckpointError, match=message):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_long_lists_are_cut(path, model, trained):
    torch.save({key: value for key, value in trained.items() if not key.startswith("layer")}, path)
    missing = sum(key.startswith("layer") and "tracked" not in key for key in trained)
    with pytest.raises(
        CheckpointError, match=rf"missing: ('[\w.]+' \[[\d, ]+\],? ?){{8}}and {missing - 8} more\nUse .* what fits$"
    ):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_what_lies_outside_is_listed_and_used_for_the_hint(path, model, trained):
    state = {key.replace("fc.", "head.") if "fc" in key else f"net.{key}": value for key, value in trained.items()}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"beside the model: 'head\.weight'.*\s.*try init_rename=\{head: fc\}"):
        load_float(model, path)


def test_the_hint_works(path, model, trained):
    state = {key.replace("fc.", "head.") if "fc" in key else f"net.{key}": value for key, value in trained.items()}
    torch.save(state, path)
    load_float(model, path, rename={"head": "fc"})
    assert_same(model, trained)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.usefixtures("untouched")
def test_fits_nothing(path, model, trained, strict):
    torch.save(prefixed("backbone.", trained), path)
    message = (
        r"fits no tensor of ResNetCifar; \d+ tensors in the file, \d+ in the model\n"
        r"  in the file: 'backbone\.conv1\.weight' \[16, 3, 3, 3\] \(nearest in the model: '[\w.]*conv1\.weight' .*\n"
        r"  in the model: 'conv1\.weight' \[16, 3, 3, 3\], .*\n.*try init_rename=\{backbone: ''\}"
    )
    with pytest.raises(CheckpointError, match=message):
        load_float(model, path, strict=strict)


def test_the_hint_to_drop_a_component_works(path, model, trained):
    torch.save(prefixed("backbone.", trained), path)
    assert str(load_float(model, path, rename={"backbone": ""})).endswith("renamed backbone -> '')")
    assert_same(model, trained)


@pytest.mark.usefixtures("untouched")
def test_fits_nothing_and_no_rename_would_help(path, model):
    torch.save(nn.Sequential(nn.Linear(3, 4)).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"Build the model that it was saved from, or rename with init_rename=\{OLD"
    ):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_another_architecture_gets_no_invented_rename(path, model):
    torch.save(build("mobilenet_v2", 10).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"or rename with init_rename=\{OLD: NEW\}"):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_head_of_another_class_count(path, model):
    torch.save(net(1000).state_dict(), path)
    message = (
        r"the head fc has 1000 classes in the checkpoint and 10 in the model \('fc\.weight' \[1000, 64\] in the file, "
        r"\[10, 64\] in the model, .*num_classes=1000, or use "
        r"init_reset_head=true, .*init_strict=false .*leaves the new head as initialised"
    )
    with pytest.raises(CheckpointError, match=message):
        load_float(model, path)


def test_auxiliary_heads_of_another_class_count(path):
    def build_googlenet(num_classes):
        return googlenet(num_classes=num_classes, aux_logits=True, init_weights=False)

    torch.save(build_googlenet(5).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"the head aux1\.fc2, aux2\.fc2, fc has 5 classes in the checkpoint and 3 "
    ):
        load_float(build_googlenet(3), path)


def test_head_of_another_class_count_stays_as_initialised(path, model):
    other = net(1000)
    torch.save(other.state_dict(), path)
    head = snapshot(model.fc)
    report = load_float(model, path, strict=False)
    assert report.mismatched == ("fc.weight", "fc.bias")
    assert report.matched == report.total - 2
    assert "; 2 of another shape)" in str(report)
    assert_same(model.fc, head)
    assert_same(model, other.state_dict() | prefixed("fc.", head))


def test_not_strict_reports_missing_and_unexpected(path, model, trained):
    torch.save({key.replace("fc.", "linear."): value for key, value in trained.items()}, path)
    report = load_float(model, path, strict=False)
    assert report.missing == ("fc.weight", "fc.bias")
    assert report.unexpected == ("linear.weight", "linear.bias")
    assert "2 missing; 2 unexpected" in str(report)


@pytest.mark.usefixtures("untouched")
def test_rename_that_matches_nothing(path, model, trained):
    torch.save(prefixed("module.", trained), path)
    message = (
        r"init_rename: no key of checkpoint .* begins with 'conv' \(nearest: 'conv1'\), "
        r"'layr2\.0' \(nearest: 'layer2\.0'\); need whole leading components of its keys, after 'module\.' is stripped"
    )
    with pytest.raises(CheckpointError, match=message):
        load_float(model, path, rename={"conv": "conv1", "layr2.0": "layer2.0", "fc": "fc"})


@pytest.mark.usefixtures("untouched")
def test_rename_onto_another_tensor(path, model, trained):
    torch.save(trained, path)
    with pytest.raises(CheckpointError, match=r"two tensors for one place: 'bn1\.\w+' and 'fc\.\w+'"):
        load_float(model, path, rename={"bn1": "fc"})


@pytest.mark.usefixtures("untouched")
def test_rename_to_no_name(path, model, trained):
    torch.save(trained, path)
    with pytest.raises(ConfigError, match=r"init_rename: need \{OLD: NEW\}"):
        load_float(model, path, rename={"linear": None})


@pytest.mark.parametrize(("bad", "count"), [(float("nan"), 1), (float("inf"), 3), (float("-inf"), 2)])
@pytest.mark.usefixtures("untouched")
def test_not_finite(path, model, trained, bad, count):
    trained["layer2.0.bn1.running_var"][:count] = bad
    torch.save(trained, path)
    message = rf"x\.th holds NaN or Inf: 'layer2\.0\.bn1\.running_var' \({count} of 32 values\); weights must be finite"
    with pytest.raises(NumericsError, match=message):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_float64_that_overflows_float32(path, model, trained):
    trained["fc.weight"] = trained["fc.weight"].double() * 1e300
    torch.save(trained, path)
    with pytest.raises(NumericsError, match=r"'fc\.weight' \(640 of 640 values\)"):
        load_float(model, path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.usefixtures("untouched")
def test_integers_where_floats_are_expected(path, model, trained, dtype):
    trained["fc.weight"] = trained["fc.weight"].to(dtype)
    torch.save(trained, path)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"another kind of number .*'fc\.weight' is {name}, need a float type"):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_floats_where_integers_are_expected(path, model, trained):
    trained["bn1.num_batches_tracked"] = torch.tensor(3.5)
    torch.save(trained, path)
    with pytest.raises(CheckpointError, match=r"'bn1\.num_batches_tracked' is float32, need int64"):
        load_float(model, path)


@pytest.mark.usefixtures("untouched")
def test_truncated_file(path, model, trained):
    torch.save(trained, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"x\.th is truncated or not a checkpoint"):
        load_float(model, path)


def test_missing_file(tmp_path, model):
    with pytest.raises(CheckpointError, match=r"nope\.th does not exist in .*Checkpoints there: none"):
        load_float(model, tmp_path / "nope.th")
