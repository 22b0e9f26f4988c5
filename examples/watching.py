"""What is seen of a run: a progress bar, a log of every step, TensorBoard, and where numbers ceased to be numbers."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from errors import Diverged
from processes import rank
from torch import Tensor, nn
from tqdm import tqdm
from training import Run

LOG = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of the log of a run; a last line that was cut off is left out."""
    lines = (folder / LOG).read_text().splitlines() if (folder / LOG).exists() else []
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(lines):
                raise
    return found


class Log:
    """Writes what happens, on the first process; the others check that the loss is a number.

    Losses stay on the device for some steps, since reading one waits for the device.

    Args:
        run: The run.
        step: Steps done before; later lines of the log belong to steps that are done again, and are dropped.
    """

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step = run, step
        self.folder = Path(run.args.output)
        self._kept: list[tuple[int, Tensor, Tensor | None, float]] = []
        self._last_finite: tuple[int, float] | None = None
        self._waited, self._since, self._images = 0.0, time.perf_counter(), 0
        self._writer: Any = None
        if rank() == 0:
            lines = [line for line in read_log(self.folder) if line["step"] <= step]
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
            self._file = (self.folder / LOG).open("a")
            self._writer = tensorboard(str(self.folder), step)
        options = {"desc": run.args.loss, "unit": "step", "dynamic_ncols": True, "disable": rank() > 0}
        self.bar = tqdm(total=run.steps, initial=step, **options)

    def timed(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of a loader, and how long each was waited for."""
        batches = iter(loader)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def record(self, step: int, loss: Tensor, norm: Tensor | None, rate: float, images: int) -> bool:
        """Take note of a step; returns whether figures were read and the loss is known to be a number.

        Raises:
            Diverged: A loss or a gradient is not finite.
        """
        self._kept.append((step, loss, norm, rate))
        self._images += images
        self.bar.update()
        if self.run.device.type != "cpu" and (step + 1) % self.run.args.log_every and step + 1 < self.run.steps:
            return False
        self.flush(show=(step + 1) % self.run.args.log_every == 0)
        return True

    def flush(self, show: bool = False) -> None:
        """Write what is known, so that a checkpoint can refer to it.

        Raises:
            Diverged: A loss or a gradient is not finite.
        """
        lines = []
        for step, loss, norm, rate in self._kept:
            line = {"step": step + 1, "loss": float(loss), "lr": rate}
            if norm is not None:
                line["gradient_norm"] = float(norm)
            self._check(line)
            lines.append(line)
        self._kept.clear()
        for line in lines:
            self._write(line, "train")
        if show and lines:
            self._show(lines[-1])
        if rank() == 0:
            self._file.flush()

    def _check(self, line: dict[str, Any]) -> None:
        """Raise unless loss and gradients are finite; in float16 the scaler leaves out steps whose gradients are not."""
        if not math.isfinite(line["loss"]):
            raise Diverged(self.history(f"The loss is {line['loss']} at step {line['step']}."))
        if not self.run.scaler.is_enabled() and not math.isfinite(line.get("gradient_norm", 0.0)):
            raise Diverged(
                self.history(f"The loss is {line['loss']:.4f} at step {line['step']}, but its gradients are not finite.")
            )
        self._last_finite = line["step"], line["loss"]

    def history(self, what: str) -> str:
        """What happened, and what was last finite."""
        if self._last_finite is None:
            return f"{what} It was never finite in this run."
        return f"{what} The last step with finite numbers was {self._last_finite[0]}, with loss {self._last_finite[1]:.4f}."

    def _show(self, line: dict[str, Any]) -> None:
        elapsed = time.perf_counter() - self._since
        speed = {"images_per_second": self._images / elapsed, "waiting": self._waited / elapsed}
        if self.run.device.type == "cuda":
            speed["gigabytes"] = torch.cuda.max_memory_allocated(self.run.device) / 2**30
        self._waited, self._since, self._images = 0.0, time.perf_counter(), 0
        diagnostics = {f"diagnostics/{name}": value for name, value in self.diagnostics().items()}
        self._write({"step": line["step"], **diagnostics}, "")
        self._write({"step": line["step"], **speed}, "speed")
        shown = {"loss": f"{line['loss']:.3f}", "lr": f"{line['lr']:.1e}", "img/s": f"{speed['images_per_second']:.0f}"}
        memory = {"GB": f"{speed['gigabytes']:.1f}"} if "gigabytes" in speed else {}
        self.bar.set_postfix({**shown, "wait": f"{speed['waiting']:.0%}", **memory})

    def diagnostics(self) -> dict[str, float]:
        """Figures of the objective at the last step."""
        return {name: float(value) for name, value in self.run.loss_fn.diagnostics.items()}

    def evaluation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        """Take note of an evaluation."""
        self._write({"step": step, "epoch": epoch, **figures}, "evaluation")
        shown = f"k-NN {figures['knn']:.2%}   linear probe {figures['linear_probe']:.2%}   rank {figures['effective_rank']:.1f}"
        self.bar.write(f"epoch {epoch:>4}   {shown}")

    def _write(self, line: dict[str, Any], group: str) -> None:
        if rank() > 0:
            return
        self._file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(f"{group}/{name}".strip("/"), value, line["step"])

    def close(self) -> None:
        """Close files and the bar."""
        self.bar.close()
        if rank() == 0:
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def tensorboard(folder: str, step: int = 0) -> Any:
    """A writer of TensorBoard scalars, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def origin(model: nn.Module, images: Tensor, loss_fn: nn.Module) -> str | None:
    """Where numbers that are not finite come from: images, a parameter or a layer; None if projections are finite."""
    if not images.isfinite().all():
        return "The images of the batch are not finite already."
    for name, tensor in (*model.named_parameters(), *((f"loss.{key}", value) for key, value in loss_fn.named_parameters())):
        if not tensor.isfinite().all():
            return (
                f"The parameter {name} is not finite: the step before was too long. Try a lower --lr, more --warmup, or --clip."
            )
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"{name} ({type(module).__name__})")

        return module.register_forward_hook(hook)

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [look(name, module) for name, module in leaves]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"Images and parameters are finite; the first layer whose output is not is {found[0]}."
    return None
