"""Sentence Transformers: train a small model on pairs of sentences, and resume from the checkpoint.

python examples/integrations/train_sentence_transformers.py ntxent    # or sogclr, emc2
"""

import sys
from pathlib import Path

import tokenizers
import transformers
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import contrastive_zoo as zoo
from contrastive_zoo.integrations.huggingface import LossCallback
from contrastive_zoo.integrations.sentence_transformers import ContrastiveLoss

WORDS = [f"word{number}" for number in range(40)]
ANCHORS = [" ".join(WORDS[(3 * number + 7 * place) % 40] for place in range(6)) for number in range(120)]
POSITIVES = [" ".join(reversed(anchor.split()[1:])) for anchor in ANCHORS]


def small_model(folder: Path) -> SentenceTransformer:
    """A BERT with one layer of random weights, in place of a model from the hub."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 12}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=42, max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def fit(objective: str, folder: Path, steps: int, checkpoint: str | None = None) -> list[float]:
    """Train up to a number of steps, from the start or from a checkpoint."""
    transformers.set_seed(0)
    model = small_model(folder / "bert")
    loss_fn = zoo.get_loss(objective, num_samples=len(ANCHORS))
    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        per_device_train_batch_size=24,
        max_steps=steps,
        save_steps=10,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    # The column "label" holds what the objective needs besides the sentences: here the position in the dataset.
    columns = {"anchor": ANCHORS, "positive": POSITIVES, "label": range(len(ANCHORS))}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=ContrastiveLoss(model, loss_fn, label="index", chunk_size=8),  # activations of 8 sentences
        callbacks=[LossCallback(loss_fn)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def main(objective: str = "ntxent", folder: str = "runs/sentence_transformers") -> list[float]:
    """Losses of a run of 30 steps that stops after 10 and resumes."""
    fit(objective, Path(folder), steps=10)
    return fit(objective, Path(folder), steps=30, checkpoint=f"{folder}/checkpoint-10")


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
