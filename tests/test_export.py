"""Adapted networks as files."""

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
from torch import nn

from lightning_meta import (
    Conv4,
    MAMLModule,
    MetaLSTMModule,
    MetaOptNetModule,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
)
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError, NetworkError
from lightning_meta.export import export_network, load_exported

MODULES = {
    "MAML": lambda network: MAMLModule(network, 0.1),
    "Meta-LSTM": MetaLSTMModule,
    "MetaOptNet": MetaOptNetModule,
    "Proto-MAML": lambda network: ProtoMAMLModule(network, inner_lr=0.1),
    "ProtoNet": ProtoNetModule,
    "R2D2": R2D2Module,
}


@pytest.fixture(params=MODULES)
def adapted(request):
    """An adapted network, its support inputs and others."""
    torch.manual_seed(0)
    module = MODULES[request.param](Conv4(3, hidden=4))
    inputs = torch.rand(6, 1, 28, 28)
    return module.adapt_to(inputs, torch.arange(3).repeat(2)), inputs, torch.rand(5, 1, 28, 28)


def test_torch_export(adapted, tmp_path):
    network, inputs, others = adapted
    export_network(network, tmp_path / "model.pt2", inputs, ["a", "b", "c"], {"image_size": 28})
    found = load_exported(tmp_path / "model.pt2")
    assert (found.classes, found.about) == (["a", "b", "c"], {"image_size": 28})
    for count in (1, 2, 5):
        torch.testing.assert_close(found.network(others[:count]), network(others[:count]), rtol=1e-5, atol=1e-5)


def test_onnx(adapted, tmp_path):
    network, inputs, others = adapted
    export_network(network, tmp_path / "model.onnx", inputs, ["a", "b", "c"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (name,) = [each.name for each in session.get_inputs()]
    for count in (1, 2, 5):
        (found,) = session.run(None, {name: others[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(others[:count]), rtol=1e-5, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["lightning_meta.json"])["classes"] == ["a", "b", "c"]


class OfTwo(nn.Module):
    """Of a dict of two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, inputs):
        return self.linear(torch.cat([inputs["a"], inputs["b"]], 1))


def test_several_inputs_and_a_single_example(tmp_path):
    network, one = OfTwo(), {"a": torch.rand(1, 2), "b": torch.rand(1, 3)}
    export_network(network, tmp_path / "model.pt2", one)
    found = load_exported(tmp_path / "model.pt2")
    more = {"a": torch.rand(7, 2), "b": torch.rand(7, 3)}
    torch.testing.assert_close(found.network(more), network(more))
    assert found.classes is None
    export_network(network, tmp_path / "model.onnx", one)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (other,) = session.run(None, {f"inputs_{name}": tensor.numpy() for name, tensor in more.items()})
    torch.testing.assert_close(torch.from_numpy(other), network(more), rtol=1e-5, atol=1e-5)
    assert network.training


def test_torch_reads_it_without_this_package(tmp_path):
    network = nn.Linear(2, 2)
    export_network(network, tmp_path / "model.pt2", torch.ones(1, 2))
    code = (
        f"import torch; print(torch.export.load({str(tmp_path / 'model.pt2')!r}).module()(torch.ones(1, 2)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == network(torch.ones(1, 2)).tolist()


class Branch(nn.Module):
    """Cannot be exported: what it does depends on its input."""

    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs


def test_errors(tmp_path, monkeypatch):
    network, inputs = nn.Linear(2, 2), torch.ones(1, 2)
    with pytest.raises(ConfigurationError, match=r"must end in \.pt2"):
        export_network(network, tmp_path / "model.pth", inputs)
    with pytest.raises(ConfigurationError, match="at least one example"):
        export_network(network, tmp_path / "model.pt2", inputs[:0])
    with pytest.raises(NetworkError, match="cannot export Branch"):
        export_network(Branch(), tmp_path / "model.pt2", inputs)
    with pytest.raises(DataError, match="cannot be written: No such file"):
        export_network(network, tmp_path / "nowhere" / "model.pt2", inputs)
    with pytest.raises(MissingFileError, match="There is no file"):
        load_exported(tmp_path / "model.pt2")
    (tmp_path / "other.pt2").write_bytes(b"something else")
    with pytest.raises(DataError, match="no network that was exported"):
        load_exported(tmp_path / "other.pt2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-meta\[onnx\]'"):
        export_network(network, tmp_path / "model.onnx", inputs)
    assert not list(tmp_path.glob("model*"))
