"""Both calls of every row of docs/migration.md, evaluated with the real packages: values and gradients."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import contrastive_zoo as zoo

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn about is theirs

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
PEERS = Path(sys.prefix) / "peers"  # packages that were installed without what they depend on
ROW = re.compile(r"^\| (equal|not comparable) \| `([^`]+)` \| `([^`]+)` \| `(zoo\.[^`]+)` \|$", re.MULTILINE)
B, N, WIDTH = 12, 40, 7


def rows() -> list[Any]:
    """Imports, whether values are equal, the factor between the gradients, and both calls."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        imports = re.search(r"^```py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        for number, row in enumerate(ROW.findall(section)):
            found.append(pytest.param(imports[1], *row, id=f"{section.splitlines()[0]}-{number}"))
    return found


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages in the folder of peers; of solo-learn the modules of losses without the rest, which needs much more."""
    monkeypatch.syspath_prepend(PEERS)
    for name, folder in (("solo", PEERS / "solo"), ("solo.losses", PEERS / "solo" / "losses")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    return


class Embedded(nn.Module):
    """A model of sentences that are embedded already."""

    def forward(self, column: dict[str, Tensor]) -> dict[str, Tensor]:
        return column


def names(seed: int, index: Tensor | None = None, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """What the page calls by name."""
    draws = torch.Generator().manual_seed(seed)
    z1, z2, n = (torch.randn(B, WIDTH, generator=draws, dtype=dtype).requires_grad_() for _ in range(3))
    u1, u2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    queue = F.normalize(torch.randn(30, WIDTH, generator=draws, dtype=dtype), dim=1)
    columns = [{"sentence_embedding": z} for z in (z1, z2)]
    known = {"z1": z1, "z2": z2, "u1": u1, "u2": u2, "n": n, "queue": queue, "columns": columns, "model": Embedded()}
    index = torch.randperm(N, generator=draws)[:B] if index is None else index
    known |= {"triplets": [*columns, {"sentence_embedding": n}], "index": index, "labels": torch.arange(B) % 4}
    return known | {"N": N, "B": B, "tau": 0.1, "zoo": zoo}


def value_and_gradients(call: str, known: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    value = eval(call, known)
    inputs = [known[name] for name in ("z1", "z2", "n")]
    gradients = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return value.detach(), [torch.zeros_like(z) if g is None else g for z, g in zip(inputs, gradients, strict=True)]


def assert_proportional(found: list[Tensor], wanted: list[Tensor], factor: float, tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(factor * ours, theirs, rtol=0, atol=tolerance * max(float(theirs.abs().max()), 1e-3))


def test_every_library_has_rows() -> None:
    sections = [section.splitlines()[0] for section in PAGE.split("\n## ")[1:]]
    assert {row.id.rsplit("-", 1)[0] for row in rows()} == set(sections)
    assert len(rows()) == len(re.findall(r"^\| .*`zoo\.get_loss", PAGE, re.MULTILINE))


@pytest.mark.parametrize(("imports", "value", "factor", "theirs", "ours"), rows())
def test_row(imports: str, value: str, factor: str, theirs: str, ours: str) -> None:
    for seed in range(3):
        libauc = "GCLoss" in theirs  # its tables are in float32
        known = names(seed, dtype=torch.float32 if libauc else torch.float64)
        exec(imports, known)
        # The learned scales of clip and siglip are parameters in float32.
        tolerance = 1e-4 if libauc else 1e-7 if "logit_scale" in theirs else 1e-9
        (wanted, expected), (found, gradients) = value_and_gradients(theirs, known), value_and_gradients(ours, known)
        if value == "equal":
            torch.testing.assert_close(found, wanted.reshape(()), rtol=tolerance, atol=0)
        else:
            assert abs(float(found - wanted)) > 0.01
        assert float(expected[0].abs().max()) > 1e-3
        assert_proportional(gradients, expected, eval(factor, known), tolerance)


def test_second_visit_of_libauc() -> None:
    """The averages of the first visit weigh in; LibAUC shares one among the views, so views are equal at the first visit."""
    from libauc.losses import GCLoss

    index = torch.arange(B)
    theirs = GCLoss("unimodal", N=N, tau=0.3, gamma=0.6)
    ours = zoo.get_loss("sogclr", num_samples=N, temperature=0.3, gamma=0.6)
    first, second = (names(seed, index, torch.float32) for seed in range(2))
    assert_proportional(*gradients_of(ours, theirs, first, ("z1", "z1")), 2 * 0.3, 1e-4)
    assert_proportional(*gradients_of(ours, theirs, second, ("z1", "z2")), 2 * 0.3, 1e-4)


def gradients_of(ours: zoo.Loss, theirs: nn.Module, known: dict[str, Any], views: tuple[str, str]) -> list[list[Tensor]]:
    """Of one step of each loss."""
    known |= {"theirs": theirs, "ours": ours}
    calls = f"ours({views[0]}, {views[1]}, index=index)", f"theirs({views[0]}, {views[1]}, index)"
    return [value_and_gradients(call, known)[1] for call in calls]


def test_memory_bank_of_lightly() -> None:
    from lightly.loss import NTXentLoss

    known = names(0)
    theirs = NTXentLoss(memory_bank_size=(30, WIDTH))
    theirs.memory_bank.bank = known["queue"].clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    known |= {"theirs": theirs, "ours": zoo.get_loss("infonce", temperature=0.5, symmetric=False, in_batch=False)}
    wanted = value_and_gradients("theirs(z1, z2)", known)
    found = value_and_gradients("ours(z1, z2, negatives=queue)", known)
    torch.testing.assert_close(found[0], wanted[0])
    assert_proportional(found[1], wanted[1], 1, 1e-9)


def test_later_source_of_solo_learn() -> None:
    """Its formula, as the page words it."""
    known = names(0)
    z = F.normalize(torch.cat([known["z1"], known["z2"]]), dim=1)
    ids = known["index"].repeat(2)
    same = ids[:, None] == ids[None, :]
    similarities = (z @ z.T / 0.1).exp()
    positive, negative = ((similarities * mask).sum(1) for mask in (same & ~torch.eye(2 * B).bool(), ~same))
    wanted = -(positive / (positive + negative)).log().mean()
    found = zoo.get_loss("ntxent")(known["z1"], known["z2"], index=known["index"])
    torch.testing.assert_close(found, wanted)
