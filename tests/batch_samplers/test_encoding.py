"""Features of a dataset for refresh."""

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


def mean_of_embeddings(tokens: torch.Tensor) -> torch.Tensor:
    """A text encoder that takes any length."""
    return torch.stack([tokens.float().mean(1), tokens.float().amax(1)], 1)


TOKENS = torch.arange(2, 26).view(6, 4)
INDEX = torch.arange(6)


def test_views_of_different_length() -> None:
    z1, z2, index = encode(mean_of_embeddings, [(TOKENS, TOKENS[:, :2], INDEX), (TOKENS, TOKENS, torch.tensor([1]), INDEX)])
    assert torch.equal(z1, mean_of_embeddings(TOKENS).repeat(2, 1))
    assert torch.equal(z2, torch.cat([mean_of_embeddings(TOKENS[:, :2]), mean_of_embeddings(TOKENS)]))
    assert index.tolist() == 2 * list(range(6))


def test_two_modalities_without_a_function_for_views() -> None:
    z1, z2, _ = encode((nn.Linear(3, 2), mean_of_embeddings), [(X1[:6], TOKENS, INDEX)])
    assert torch.equal(z2, mean_of_embeddings(TOKENS))
    assert z1.shape == (6, 2)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((TOKENS, INDEX % 2, INDEX), r"has shape \(6,\), as labels have"),
        ((TOKENS, INDEX.double(), INDEX), r"has shape \(6,\), as labels have"),
        ((X1[:6], INDEX[:, None], INDEX), r"is of torch.int64 and shape \(6, 1\), as labels may be"),
        ((TOKENS, torch.ones_like(TOKENS), INDEX), "holds only 0 and 1 where the first holds other integers, as a mask does"),
        (((TOKENS, TOKENS > 3), INDEX, INDEX), "holds only 0 and 1 where the first holds other integers, as a mask does"),
        ((TOKENS, TOKENS.float(), INDEX), "is of torch.float32 where the first is of torch.int64"),
        ((X1[:6], X1[:6, None], INDEX), r"has shape \(6, 1, 3\) where the first has \(6, 3\)"),
        ((X1[:6], ["a"] * 6, INDEX), "is a list where the first is a Tensor"),
    ],
)
def test_what_may_be_no_view_is_refused(batch: Any, found: str) -> None:
    wanted = rf"second view that {found}, so it may be no view. Pass views=lambda batch: \(x1, x2, index\)"
    with pytest.raises(TypeError, match=wanted):
        encode(mean_of_embeddings, [batch])
    z1, z2, _ = encode(mean_of_embeddings, [batch], views=lambda batch: (TOKENS, TOKENS, INDEX))
    assert torch.equal(z1, z2)


def test_labels_are_refused_with_two_encoders_too() -> None:
    with pytest.raises(TypeError, match="as labels have"):
        encode((mean_of_embeddings, nn.Embedding(6, 2)), [(TOKENS, INDEX, INDEX)])


def test_a_dictionary_is_no_guess() -> None:
    dataset = zoo.IndexedDataset([{"image": row, "caption": row} for row in X1])
    with pytest.raises(TypeError, match=r"dict with keys 'image', 'caption', 'index', .* Pass views, e.g. views=lambda batch"):
        encode(nn.Linear(3, 2), DataLoader(dataset, batch_size=4))


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (INDEX.float(), TypeError, "index must hold integers"),
        (INDEX[:, None], ValueError, r"index must have shape \(6,\)"),
        (INDEX[:5], ValueError, r"index must have shape \(6,\), one entry per sample, got \(5,\)"),
        (["a", "b"], TypeError, r"index must hold integers, got list: .* Pass views=lambda batch"),
    ],
)
def test_an_index_is_one_integer_per_sample(index: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode(nn.Linear(3, 2), [(X1[:6], X2[:6], index)])


def test_features_are_one_row_per_sample() -> None:
    with pytest.raises(ValueError, match=r"encoder\(x1\) must be \(rows, features\), got shape \(6, 4, 2\)"):
        encode(nn.Embedding(30, 2), [(TOKENS, TOKENS, INDEX)])
    with pytest.raises(ValueError, match=r"encoder\(x1\) and encoder\(x2\) must have the same shape"):
        encode((nn.Linear(3, 2), nn.Linear(3, 4)), [(X1, X2, torch.arange(10))])
    with pytest.raises(TypeError, match=r"x1 must be a tensor, or have a method to\(device\), got str"):
        encode(nn.Linear(3, 2), [(["a", "b"], ["c", "d"], torch.arange(2))])


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
