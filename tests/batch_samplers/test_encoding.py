"""Features of a data set for refresh."""

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import encode

X1, X2 = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(0))


class Pairs(TensorDataset):
    """Two views in a tuple, and a label."""

    def __getitem__(self, position: int) -> Any:
        x1, x2 = super().__getitem__(position)
        return (x1, x2), position % 2


def loader(dataset: Any, **params: Any) -> DataLoader[Any]:
    return DataLoader(zoo.IndexedDataset(dataset), **{"batch_size": 4, **params})


@pytest.mark.parametrize("dataset", [TensorDataset(X1, X2), TensorDataset(X1, X2, torch.arange(10)), Pairs(X1, X2)])
def test_features_of_all_samples(dataset: Any) -> None:
    encoder = nn.Linear(3, 2)
    z1, z2, index = encode(encoder, loader(dataset, shuffle=True))
    assert not z1.requires_grad
    assert sorted(index.tolist()) == list(range(10))
    assert torch.allclose(z1, encoder(X1)[index])
    assert torch.allclose(z2, encoder(X2)[index])


def test_an_encoder_for_each_modality_and_views_of_ones_own() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    batches = [{"image": X1[:6], "text": X2[:6], "id": list(range(6))}]
    z1, z2, index = encode((first, second), batches, views=lambda batch: (batch["image"], batch["text"], batch["id"]))
    assert torch.allclose(z1, first(X1[:6]))
    assert torch.allclose(z2, second(X2[:6]))
    assert index.tolist() == list(range(6))


def test_modes_of_all_parts_come_back_and_statistics_stay() -> None:
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    encoder[1].eval()
    before = encoder[0].running_mean.clone()
    one, two = (encode(encoder, loader(TensorDataset(X1, X2)))[0] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(encoder[0].running_mean, before)
    assert [part.training for part in encoder.modules()] == [True, True, False, True]

    def broken(batch: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        encode(encoder, loader(TensorDataset(X1, X2)), views=broken)
    assert encoder.training


def test_precision() -> None:
    encoder = nn.Linear(3, 2)
    half, _, _ = encode(encoder, loader(TensorDataset(X1, X2)), amp=torch.bfloat16)
    exact = encoder(X1)
    assert half.dtype == torch.float32
    assert torch.allclose(half, exact, atol=0.05)
    assert not torch.allclose(half, exact, atol=1e-6)
    double, _, _ = encode(nn.Linear(3, 2).double(), loader(TensorDataset(X1.double(), X2.double())))
    assert double.dtype == torch.float64


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    encode(nn.Linear(3, 2), loader(TensorDataset(X1, X2)), progress=True)
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"progress=True needs tqdm: pip install 'contrastive-zoo\[selection\]'"):
        encode(nn.Linear(3, 2), loader(TensorDataset(X1, X2)), progress=True)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="loader gives no batch"):
        encode(nn.Linear(3, 2), [])
    with pytest.raises(TypeError, match=r"Pass views=lambda batch: \(x1, x2, index\)"):
        encode(nn.Linear(3, 2), loader(TensorDataset(X1)))


@pytest.mark.parametrize("name", ["ordered", "spectral", "bisection"])
def test_features_go_into_refresh(name: str) -> None:
    sampler = zoo.get_batch_sampler(name, num_samples=10, batch_size=2)
    sampler.refresh(*encode(nn.Linear(3, 2), loader(TensorDataset(X1, X2))))
    assert len(list(sampler)) == len(sampler)
