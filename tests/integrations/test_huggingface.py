"""Objectives with state and gradient caching in Trainer, with the callback or inside the model, on one process and on two."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from integrations.blocks import run_block
from integrations.spawning import in_processes
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo.integrations.huggingface import BatchSamplerCallback, LossCallback, parameter_groups
from contrastive_zoo.state.layout import Layout

# Trainer advises on devices and names.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE, WIDTH, BATCH, STEPS = 40, 6, 20, 4  # the second half meets the samples of the first
NAMES: dict[str, Any] = {"torch": torch, "zoo": zoo, "nn": nn, "os": os, "transformers": transformers}
for first in ("class PretrainingModel(", "class CachedPretrainingModel("):
    run_block("integrations/huggingface.md", first, NAMES)
KINDS = ["PretrainingModel", "CachedPretrainingModel", "ContrastiveTrainer"]
OBJECTIVES = ["sogclr", "emc2"]
FOUND = dict[str, dict[str, Any]]


class InOrder(transformers.Trainer):
    """Sees the samples in the order of the dataset, so that any number of processes shares the same batches."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class ContrastiveInOrder(InOrder):
    """Calls the loss outside the model."""

    loss_fn: Any

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Tensor:
        z1, z2 = model(torch.cat([inputs["x1"], inputs["x2"]])).chunk(2)
        return self.loss_fn(z1, z2, index=inputs["index"])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def dataset() -> zoo.IndexedDataset:
    draws = torch.Generator().manual_seed(1)
    x1 = torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    x2 = x1 + 0.3 * torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)
    return zoo.IndexedDataset([{"x1": one, "x2": other} for one, other in zip(x1, x2, strict=True)])


def fit(
    folder: Path, kind: str, objective: str, steps: int = STEPS, resume: Any = None, callback: bool = True
) -> dict[str, Any]:
    """Losses and everything that is learned or kept."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = transformers.TrainingArguments(
        output_dir=str(folder / f"{kind}-{objective}"),
        per_device_train_batch_size=BATCH // world,
        max_steps=steps,
        save_steps=STEPS // 2,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    if kind == "ContrastiveTrainer":
        model, loss_fn = encoder(), zoo.get_loss(objective, num_samples=SIZE).double()
        saving = [LossCallback(loss_fn, checkpoint=resume if isinstance(resume, Path) else None)] if callback else []
        trainer = ContrastiveInOrder(model=model, args=args, train_dataset=dataset(), callbacks=saving)
        trainer.loss_fn = loss_fn
    else:
        model = NAMES[kind](encoder(), SIZE, objective).double()
        loss_fn = model.loss_fn
        trainer = InOrder(model=model, args=args, train_dataset=dataset())
    losses: list[Tensor] = []
    loss_fn.register_forward_hook(lambda module, given, loss: losses.append(loss.detach()))
    trainer.train(resume_from_checkpoint=str(resume) if isinstance(resume, Path) else resume)
    parts = getattr(model, "encoder", model), loss_fn
    return {
        "losses": losses,
        "state": {f"{k}.{name}": t for k, part in enumerate(parts) for name, t in part.state_dict().items()},
    }


def run(folder: Path, kind: str, objective: str) -> FOUND:
    """A run in one go, and one that is stopped halfway."""
    whole = fit(folder / "whole", kind, objective)
    whole["losses"] = whole["losses"][-STEPS // 2 :]
    fit(folder / "parts", kind, objective, steps=STEPS // 2)
    return {"run": whole, "resumed": fit(folder / "parts", kind, objective, resume=True)}


def work(folder: Path) -> dict[str, FOUND]:
    return {f"{kind}, {objective}": run(folder, kind, objective) for kind in KINDS for objective in OBJECTIVES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, FOUND]]:
    return in_processes(work, tmp_path_factory.mktemp("transformers"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_resume_bit_for_bit_and_processes_train_as_one(
    kind: str, objective: str, found: list[dict[str, FOUND]], tmp_path: Path
) -> None:
    alone, several = run(tmp_path, kind, objective), [of_rank[f"{kind}, {objective}"] for of_rank in found]
    for each in (alone, *several):
        assert len(each["resumed"]["losses"]) == STEPS // 2
        torch.testing.assert_close(each["resumed"], each["run"], rtol=0, atol=0)
        torch.testing.assert_close(each["run"], several[0]["run"], rtol=0 if each is not alone else 1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_the_callback_a_resumed_run_differs(objective: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", "ContrastiveTrainer", objective)
    fit(tmp_path / "parts", "ContrastiveTrainer", objective, steps=STEPS // 2, callback=False)
    resumed = fit(tmp_path / "parts", "ContrastiveTrainer", objective, resume=True, callback=False)
    assert not torch.equal(torch.stack(resumed["losses"]), torch.stack(whole["losses"][-STEPS // 2 :]))


def test_a_run_is_resumed_in_another_folder(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", "ContrastiveTrainer", "emc2")
    checkpoint = tmp_path / "whole" / "ContrastiveTrainer-emc2" / f"checkpoint-{STEPS // 2}"
    resumed = fit(tmp_path / "other", "ContrastiveTrainer", "emc2", resume=checkpoint)
    torch.testing.assert_close(resumed["state"], whole["state"], rtol=0, atol=0)
    (checkpoint / "loss.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cannot resume: .*loss\.pt does not exist\. Pass checkpoint=folder to LossCallback"
    ):
        fit(tmp_path / "third", "ContrastiveTrainer", "emc2", resume=checkpoint)


def test_parameter_groups_decay_matrices_of_the_model_alone() -> None:
    model = NAMES["PretrainingModel"](encoder(), SIZE, "clip")
    outside = zoo.get_loss("ntxent", temperature=nn.Parameter(torch.tensor([0.1])))
    decayed, rest = parameter_groups(model, weight_decay=0.1, loss_fn=outside)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(layer.weight) for layer in model.encoder if isinstance(layer, nn.Linear)}
    learned = [layer.bias for layer in model.encoder if isinstance(layer, nn.Linear)]
    learned += [model.loss_fn.logit_scale, outside.temperature]
    assert {id(p) for p in rest["params"]} == {id(p) for p in learned}
    assert len(rest["params"]) == len(learned)


def test_a_callback_takes_a_loss_or_a_batch_sampler() -> None:
    with pytest.raises(TypeError, match="loss_fn must be a loss of the zoo, got MSELoss"):
        LossCallback(nn.MSELoss())
    with pytest.raises(TypeError, match="sampler must be a batch sampler of the zoo, got list"):
        BatchSamplerCallback([[0, 1]])


def test_a_part_of_a_table_is_not_saved_as_the_table() -> None:
    loss_fn = zoo.get_loss("sogclr", num_samples=SIZE)
    loss_fn.objective.divide(Layout(SIZE, 0, 2, "a group"))
    with pytest.raises(ValueError, match="one process would save its rows only"):
        LossCallback(loss_fn)
