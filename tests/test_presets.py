from __future__ import annotations

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qat import presets
from qat.errors import ConfigError
from qat.presets import load_preset, preset_names

GROUPS = ("quant", "target")
PRESETS = [(group, name) for group in GROUPS for name in preset_names(group)]


def test_names_that_the_readme_promises():
    below = {"w4a8", "w4a8_lsq", "w4a4_lsq", "w4a4_pact", "w4a4_dorefa", "w3a3_lsq", "w2a2_lsq"}
    assert {"w8a8", "w8a8_per_tensor", "w8a8_symmetric"} | below <= set(preset_names("quant"))
    assert {"onnxruntime", "onnxruntime_vnni"} <= set(preset_names("target"))


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_a_preset_carries_its_file_name(group, name):
    assert load_preset(group, name)["name"] == name


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_a_name_means_the_same_in_python_and_in_hydra(group, name):
    folder = presets._folder(group)
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = OmegaConf.to_container(compose(name), resolve=True)
    assert load_preset(group, name) == composed


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_the_first_line_says_what_you_get(group, name):
    first = (presets._folder(group) / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.rstrip().endswith(".")


def test_a_variant_states_only_its_difference():
    base, variant = load_preset("quant", "w8a8"), load_preset("quant", "w4a8")
    assert variant == {**base, "name": "w4a8", "weight": {**base["weight"], "bits": 4}, "first_last_bits": 8}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown recipe 'w8a9'\. Did you mean .*w8a8.*\? Known: .*w4a8.*w8a8"):
        load_preset("quant", "w8a9")
    with pytest.raises(ConfigError, match=r"unknown target 'onnx'\. .*Known: .*onnxruntime, onnxruntime_vnni"):
        load_preset("target", "onnx")


def test_an_unknown_group_says_so():
    with pytest.raises(ConfigError, match="no presets of group 'quants' beside the package; reinstall qat"):
        preset_names("quants")


def test_a_wheel_reads_the_presets_that_it_carries(monkeypatch, tmp_path):
    """Without `conf/` beside the package, `qat/conf` inside it serves; the build copies the one into the other."""
    inside = tmp_path / "site-packages" / "qat"
    for group in GROUPS:
        (inside / "conf" / group).mkdir(parents=True)
        for name in preset_names(group):
            text = (presets._folder(group) / f"{name}.yaml").read_text()
            (inside / "conf" / group / f"{name}.yaml").write_text(text)
    expected = {key: load_preset(*key) for key in PRESETS}
    monkeypatch.setattr(presets, "FOLDERS", (inside / "conf", inside.parent / "conf"))
    assert {key: load_preset(*key) for key in PRESETS} == expected


def test_the_wheel_carries_exactly_the_groups_that_python_reads(pytestconfig):
    tomllib = pytest.importorskip("tomllib")
    build = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert {f"conf/{group}": f"qat/conf/{group}" for group in GROUPS}.items() <= included.items()


def test_presets_are_plain_yaml():
    for group, name in PRESETS:
        own = yaml.safe_load((presets._folder(group) / f"{name}.yaml").read_text())
        assert own.get("defaults", ["_self_"])[-1] == "_self_", f"{group}/{name}: own values must win"
