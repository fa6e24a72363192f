from __future__ import annotations

from qat import machine


def test_a_cpu_without_vnni_is_told_before_training():
    old = {"name": "Old CPU", "isa": ["avx2"], "vnni": False, "arch": "x86_64", "threads": 1}
    message = machine.saturation("onnxruntime_vnni", old)
    assert message.startswith("target onnxruntime_vnni will not be exact on this machine: Old CPU has no VNNI (avx2")
    assert "target.weight_bits=7 is exact here" in message
    assert machine.saturation("onnxruntime_vnni", {**old, "vnni": True}) == ""
    assert machine.saturation("onnxruntime_vnni", {**old, "arch": "arm64", "isa": []}) == ""  # its sums have 32 bits


def test_the_sums_that_saturate():
    assert 2 * 255 * 127 > 2**15 - 1 >= 2 * 255 * 63


def test_a_number_comes_with_its_machine():
    assert {"name", "isa", "vnni", "arch", "threads"} == set(machine.cpu())
    assert {"python", "torch", "onnxruntime"} <= set(machine.versions())
