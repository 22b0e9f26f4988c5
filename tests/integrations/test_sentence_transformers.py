"""The loss for SentenceTransformerTrainer: resuming, caching, two processes, columns, MultipleNegativesRankingLoss."""

import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from datasets import Dataset
from integrations.spawning import in_processes
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo.integrations.huggingface import LossCallback
from contrastive_zoo.integrations.sentence_transformers import ContrastiveLoss

# The trainer advises on devices and on model cards.
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, STEPS = 12, 4  # the second half meets the samples of the first
WORDS = [f"word{number}" for number in range(18)]
ANCHORS = [" ".join(WORDS[(3 * number + 5 * place) % len(WORDS)] for place in range(6)) for number in range(24)]
POSITIVES = [" ".join(reversed(anchor.split()[1:])) for anchor in ANCHORS]
OBJECTIVES = ["sogclr", "emc2", "clip"]
KINDS = {"plain": None, "cached": 5}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Transformer with its tokenizer, in a folder."""
    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder)
    return folder


def save_bert(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 12}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **options).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(folder)


def model_of(bert: Path) -> SentenceTransformer:
    transformer = Transformer(str(bert))
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")


def loss_of(objective: str) -> Any:
    return zoo.get_loss(objective, num_samples=len(ANCHORS))


def fit(
    bert: Path,
    folder: Path,
    kind: str,
    objective: str = "infonce",
    steps: int = STEPS,
    resume: bool = False,
    saved: bool = True,
    loss: Any = None,
) -> dict[str, Any]:
    """Losses and everything that is learned or kept."""
    model, loss_fn = model_of(bert), loss_of(objective)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=steps,
        save_steps=STEPS // 2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    module = ContrastiveLoss(model, loss_fn, chunk_size=KINDS[kind]) if loss is None else loss(model)
    losses: list[Tensor] = []
    module.register_forward_hook(lambda module, given, loss: losses.append(loss.detach()))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES, "label": range(len(ANCHORS))}),
        loss=module,
        callbacks=[LossCallback(loss_fn)] if saved else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return {"losses": losses, "state": {**model.state_dict(), **loss_fn.state_dict()}}


def run(bert: Path, folder: Path, kind: str, objective: str, saved: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The second half of a run, and of one that is stopped before."""
    whole = fit(bert, folder / "whole", kind, objective)
    whole["losses"] = whole["losses"][-STEPS // 2 :]
    fit(bert, folder / "parts", kind, objective, steps=STEPS // 2, saved=saved)
    return whole, fit(bert, folder / "parts", kind, objective, resume=True, saved=saved)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, objective: str, bert: Path, tmp_path: Path) -> None:
    whole, resumed = run(bert, tmp_path, kind, objective)
    assert len(resumed["losses"]) == STEPS // 2
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_trainer_alone_forgets_the_loss(objective: str, bert: Path, tmp_path: Path) -> None:
    whole, resumed = run(bert, tmp_path, "plain", objective, saved=False)
    assert not torch.equal(torch.stack(resumed["losses"]), torch.stack(whole["losses"]))


def test_caching_changes_nothing_without_dropout(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    plain, cached = (fit(bert, tmp_path / kind, kind, "clip") for kind in KINDS)
    torch.testing.assert_close(cached, plain, rtol=1e-3, atol=1e-4)


def work(folder: Path) -> dict[str, Any]:
    """In each of two processes, without dropout, whose masks would differ between any numbers of processes."""
    nn.Dropout.forward = lambda self, x: x
    return {kind: run(folder / "bert", folder / kind, kind, "clip") for kind in KINDS}


def test_two_processes_train_alike_and_resume(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    first, second = in_processes(work, tmp_path)
    for kind in KINDS:
        for whole, resumed in (first[kind], second[kind]):
            torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
            torch.testing.assert_close(whole, first[kind][0], rtol=0, atol=0)
    torch.testing.assert_close(first["cached"], first["plain"], rtol=1e-3, atol=1e-4)


def test_parameters_of_the_loss_are_learned(bert: Path, tmp_path: Path) -> None:
    learned = fit(bert, tmp_path, "plain", "clip")["state"]["objective.logit_scale"]
    assert abs(float(learned - zoo.get_loss("clip").logit_scale)) > 1e-4


def value_and_gradient(loss: nn.Module, columns: list[list[str]], labels: Any = None) -> tuple[Tensor, Tensor]:
    features = [loss.model.tokenize(column) for column in columns]
    for parameter in loss.parameters():
        parameter.grad = None
    value = loss(features, labels)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in loss.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("columns", [2, 3, 4])
def test_infonce_is_multiple_negatives_ranking_loss(bert: Path, columns: int, chunk_size: int | None) -> None:
    model = model_of(bert).eval()
    texts = [ANCHORS[:12], POSITIVES[:12], POSITIVES[12:], ANCHORS[12:]][:columns]
    ours = ContrastiveLoss(model, zoo.get_loss("infonce", temperature=0.05, symmetric=False), chunk_size=chunk_size)
    theirs = (
        MultipleNegativesRankingLoss(model)
        if chunk_size is None
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=chunk_size)
    )
    (value, gradient), wanted = value_and_gradient(ours, texts), value_and_gradient(theirs, texts)
    torch.testing.assert_close(value, wanted[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, wanted[1], rtol=1e-4, atol=5e-6 * float(wanted[1].abs().max()))


def test_a_run_equals_one_with_multiple_negatives_ranking_loss(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    infonce = zoo.get_loss("infonce", temperature=0.05, symmetric=False)
    found = fit(bert, tmp_path / "1", "plain", saved=False, loss=lambda model: ContrastiveLoss(model, infonce))
    wanted = fit(bert, tmp_path / "2", "plain", saved=False, loss=MultipleNegativesRankingLoss)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_what_the_label_column_holds(bert: Path, chunk_size: int | None) -> None:
    model = model_of(bert).eval()
    texts, index, classes = [ANCHORS[:8], POSITIVES[:8]], torch.arange(8) + 3, torch.arange(8) % 3
    z1, z2 = (model.encode(column, convert_to_tensor=True) for column in texts)
    for name, label, column, given in [
        ("sogclr", "index", index, {"index": index}),
        ("supcon", "labels", classes, {"labels": classes}),
        ("supcon", "index and labels", torch.stack([index, classes], 1), {"index": index, "labels": classes}),
        ("ntxent", "index", None, {}),
    ]:
        loss = ContrastiveLoss(model, loss_of(name), label, chunk_size)
        found, _ = value_and_gradient(loss, texts, column)
        torch.testing.assert_close(found, loss_of(name)(z1, z2, **given), rtol=1e-4, atol=1e-6)


def test_refusals(bert: Path) -> None:
    model = model_of(bert)
    with pytest.raises(ValueError, match="label must be one of 'index', 'labels', 'index and labels', got 'classes'"):
        ContrastiveLoss(model, zoo.get_loss("supcon"), label="classes")
    with pytest.raises(TypeError, match="loss_fn must be a loss of the zoo, got MultipleNegativesRankingLoss"):
        ContrastiveLoss(model, MultipleNegativesRankingLoss(model))
    with pytest.raises(ValueError, match="text columns anchor and positive, got 1 column"):
        value_and_gradient(ContrastiveLoss(model, zoo.get_loss("ntxent")), [ANCHORS])
    loss = ContrastiveLoss(model, zoo.get_loss("supcon"), label="index and labels")
    with pytest.raises(ValueError, match=r"must hold lists \[index, label\], got shape \(24,\)"):
        value_and_gradient(loss, [ANCHORS, POSITIVES], torch.arange(24))
    with pytest.raises(TypeError, match="negatives"):
        value_and_gradient(ContrastiveLoss(model, zoo.get_loss("dhel")), [ANCHORS, POSITIVES, ANCHORS])
