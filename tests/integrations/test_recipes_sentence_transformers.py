"""Objectives with state and gradient caching in Sentence Transformers, with the code of docs/recipes.md."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from datasets import Dataset
from integrations.blocks import run_block
from integrations.spawning import in_processes
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn

import contrastive_zoo as zoo

# The trainer advises on devices and on model cards.
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, STEPS = 12, 4  # the second half meets the samples of the first
WORDS = [f"word{number}" for number in range(18)]
ANCHORS = [" ".join(WORDS[(3 * number + 5 * place) % len(WORDS)] for place in range(6)) for number in range(24)]
POSITIVES = [" ".join(reversed(anchor.split()[1:])) for anchor in ANCHORS]
OBJECTIVES = ["sogclr", "emc2", "clip"]
KINDS = ["SentenceLoss", "CachedSentenceLoss"]


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


def fit(
    bert: Path, folder: Path, kind: str, objective: str, steps: int = STEPS, resume: bool = False, saved: bool = True
) -> dict[str, Any]:
    """Losses and everything that is learned or kept."""
    transformer = Transformer(str(bert))
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")
    names: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "os": os,
        "transformers": transformers,
        "Dataset": Dataset,
        "SentenceTransformerTrainer": SentenceTransformerTrainer,
        "zoo": SimpleNamespace(**{**vars(zoo), "get_loss": lambda _, **params: zoo.get_loss(objective, **params)}),
        "model": model,
        "anchors": ANCHORS,
        "positives": POSITIVES,
        "args": SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", "1")),
            max_steps=steps,
            save_steps=STEPS // 2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
    }
    for first in ("class LossCheckpoint(", "class SentenceLoss(", "class CachedSentenceLoss("):
        run_block("recipes.md", first, names)
    names["SentenceLoss"] = names[kind]
    trainer = run_block("recipes.md", "SentenceTransformerTrainer(", names)["trainer"]
    if not saved:
        trainer.remove_callback(names["LossCheckpoint"])
    losses: list[Tensor] = []
    names["loss_fn"].register_forward_hook(lambda module, given, loss: losses.append(loss.detach()))
    trainer.train(resume_from_checkpoint=resume)
    return {"losses": losses, "state": {**model.state_dict(), **names["loss_fn"].state_dict()}}


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
    whole, resumed = run(bert, tmp_path, "SentenceLoss", objective, saved=False)
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
    torch.testing.assert_close(first[KINDS[1]], first[KINDS[0]], rtol=1e-3, atol=1e-4)


def test_parameters_of_the_loss_are_learned(bert: Path, tmp_path: Path) -> None:
    learned = fit(bert, tmp_path, "SentenceLoss", "clip")["state"]["objective.logit_scale"]
    assert abs(float(learned - zoo.get_loss("clip").logit_scale)) > 1e-4
