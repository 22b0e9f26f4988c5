"""What the zoo is compared with: plain torch, compiled torch, published packages and the authors' way of computing.

A peer is imported when it is made; one that is not installed raises `ImportError` there, which the benchmarks report.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dense
import torch
import torch.nn.functional as F
from harness import NUM_SAMPLES, Loss
from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """One contestant.

    `gradient_factor` is its gradient over the zoo's. `has_value` is false where the number returned is a surrogate
    whose gradient alone means something. Batches above `largest` are left out, for the reason in `why`.
    """

    name: str
    kind: Literal["zoo", "bare", "compiled", "package", "authors"]
    make: Callable[[], Loss]
    gradient_factor: float = 1.0
    has_value: bool = True
    largest: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Objective:
    """One line of the benchmark: a zoo name with its parameters, and peers that compute the same.

    The first peer in float64 is the reference. `sweep` says which products its bare sweep has: of the stacked views
    with themselves, of each view with itself, or of one view with the other. An objective that draws has an
    `expectation` instead, the mean over its draws for an order of rows.
    """

    title: str
    name: str
    peers: tuple[Peer, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    sweep: Literal["stacked", "views", "cross"] | None = None
    expectation: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def contestants(self) -> dict[str, Peer]:
        """The zoo and its peers, by name."""
        zoo = Peer("zoo", "zoo", lambda: zoo_loss(self.name, self.params))
        return {peer.name: peer for peer in (zoo, *self.peers)}


def zoo_loss(name: str, params: Mapping[str, Any], num_samples: int = NUM_SAMPLES) -> Loss:
    import contrastive_zoo as zoo

    loss = zoo.get_loss(name, num_samples=num_samples, **params)
    needs = loss.needs
    return lambda z1, z2, index: loss(
        z1, z2, index=index if "index" in needs else None, labels=_labels(index) if "labels" in needs else None
    )


def _labels(index: Tensor) -> Tensor:
    return index % CLASSES


def _with_labels(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    return lambda z1, z2, index: loss(z1, z2, _labels(index))


def _of_views(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda z1, z2, index: loss(z1, z2)


def _bare(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Peer, Peer]:
    """A dense formula as it stands and compiled by inductor."""
    bare = Peer("bare torch", "bare", lambda: _of_views(loss))
    return bare, Peer("compiled torch", "compiled", lambda: _of_views(torch.compile(loss, dynamic=False)))


def _authors(loss: Callable[[Tensor, Tensor], Tensor]) -> Peer:
    return Peer("authors' way", "authors", lambda: _of_views(loss))


def _lightly_ntxent() -> Loss:
    from lightly.loss import NTXentLoss

    return _of_views(NTXentLoss(temperature=0.1))


def _lightly_dcl(name: str) -> Callable[[], Loss]:
    def make() -> Loss:
        from lightly import loss

        return _of_views(getattr(loss, name)(temperature=0.1))

    return make


def _metric_learning(name: str, labels: Callable[[Tensor], Tensor] | None = None) -> Callable[[], Loss]:
    """With a label for each sample by default."""

    def make() -> Loss:
        from pytorch_metric_learning import losses

        loss = getattr(losses, name)(temperature=0.1)
        return lambda z1, z2, index: loss(torch.cat([z1, z2]), (labels(index) if labels else index).repeat(2))

    return make


def _info_nce() -> Loss:
    from info_nce import InfoNCE

    return _of_views(InfoNCE(temperature=0.1))


def _open_clip() -> Loss:
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return lambda z1, z2, index: loss(F.normalize(z1, dim=1), F.normalize(z2, dim=1), logit_scale=10.0)


def _learned_open_clip() -> Loss:
    from open_clip.loss import ClipLoss

    loss, logit_scale = ClipLoss(), dense.CLIP().logit_scale
    return lambda z1, z2, index: loss(F.normalize(z1, dim=1), F.normalize(z2, dim=1), logit_scale.exp())


def _open_clip_siglip() -> Loss:
    from open_clip.loss import SigLipLoss

    loss, scale, bias = SigLipLoss(), torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    return lambda z1, z2, index: loss(F.normalize(z1, dim=1), F.normalize(z2, dim=1), scale, bias)


def _generalised(name: str) -> tuple[Peer, Peer]:
    """The dense formula of ucl, hucl, scl or hscl as it stands and compiled; classes are read off the index."""
    beta = 1.0 if name.startswith("h") else 0.0

    def loss(z1: Tensor, z2: Tensor, index: Tensor) -> Tensor:
        return dense.generalised(z1, z2, index % CLASSES if "scl" in name else None, beta)

    compiled = Peer("compiled torch", "compiled", lambda: torch.compile(loss, dynamic=False))
    return Peer("authors' way", "authors", lambda: loss), compiled


def _libauc(individual: bool) -> Callable[[], Loss]:
    def make() -> Loss:
        from libauc.losses.contrastive import GCLoss_v1

        with contextlib.redirect_stdout(io.StringIO()):
            return GCLoss_v1(N=NUM_SAMPLES, tau=0.1, gamma=0.9, device=torch.device("cpu"), enable_isogclr=individual)

    return make


def _one_direction(z1: Tensor, z2: Tensor) -> Tensor:
    return dense.infonce(z1, z2, symmetric=False)


def _sogclr() -> dense.SogCLR:
    return dense.SogCLR(NUM_SAMPLES)


CLASSES = 10
ALL_TRIPLES = "it sets every positive pair against every negative pair: about 136 GB at 1024"
NTXENT_PACKAGES = (
    Peer("lightly NTXentLoss", "package", _lightly_ntxent),
    Peer("metric-learning SupConLoss", "package", _metric_learning("SupConLoss")),
    Peer("metric-learning NTXentLoss", "package", _metric_learning("NTXentLoss"), largest=256, why=ALL_TRIPLES),
)
SUPCON = (
    Peer("bare torch", "bare", lambda: _with_labels(dense.supcon)),
    Peer("compiled torch", "compiled", lambda: _with_labels(torch.compile(dense.supcon, dynamic=False))),
    Peer("metric-learning SupConLoss", "package", _metric_learning("SupConLoss", _labels)),
)
SOGCLR = (
    Peer("bare torch", "bare", _sogclr),
    Peer("compiled torch", "compiled", lambda: torch.compile(_sogclr().__call__, dynamic=False)),
    Peer("libauc GCLoss_v1", "package", _libauc(False), gradient_factor=0.2, has_value=False),
)
ISOGCLR = (
    Peer("bare torch", "bare", lambda: dense.ISogCLR(NUM_SAMPLES)),
    Peer("compiled torch", "compiled", lambda: torch.compile(dense.ISogCLR(NUM_SAMPLES).__call__, dynamic=False)),
    Peer("libauc GCLoss_v1", "package", _libauc(True), gradient_factor=0.2, has_value=False),
)
OPEN_CLIP = Peer("open_clip ClipLoss", "package", _open_clip)
CLIP = (
    Peer("bare torch", "bare", lambda: _of_views(dense.CLIP())),
    Peer("compiled torch", "compiled", lambda: _of_views(torch.compile(dense.CLIP().__call__, dynamic=False))),
    Peer("open_clip ClipLoss", "package", _learned_open_clip),
)


OPEN_CLIP_SIGLIP = Peer("open_clip SigLipLoss", "package", _open_clip_siglip)
INFO_NCE = Peer("info_nce InfoNCE", "package", _info_nce)
DCL = Peer("lightly DCLLoss", "package", _lightly_dcl("DCLLoss"))
DCLW = Peer("lightly DCLWLoss", "package", _lightly_dcl("DCLWLoss"))
EMC2 = Peer("authors' way", "authors", lambda: dense.EMC2(NUM_SAMPLES), has_value=False)
ALIGNMENT_UNIFORMITY = (*_bare(dense.alignment_uniformity), _authors(dense.alignment_uniformity_authors))
SPECTRAL_CONTRASTIVE = (*_bare(dense.spectral_contrastive), _authors(dense.spectral_contrastive_authors))
ONE_DIRECTION = {"symmetric": False}

OBJECTIVES = (
    Objective("ntxent", "ntxent", (*_bare(dense.ntxent), *NTXENT_PACKAGES), sweep="stacked"),
    Objective("infonce", "infonce", (*_bare(dense.infonce), OPEN_CLIP), sweep="cross"),
    Objective("infonce, one direction", "infonce", (*_bare(_one_direction), INFO_NCE), ONE_DIRECTION, sweep="cross"),
    Objective("clip", "clip", CLIP, {"init_scale": 10.0}, sweep="cross"),
    Objective("siglip", "siglip", (*_bare(dense.siglip), OPEN_CLIP_SIGLIP), sweep="cross"),
    Objective("dcl", "dcl", (*_bare(dense.dcl), DCL), sweep="stacked"),
    Objective("dclw", "dclw", (*_bare(dense.dclw), DCLW), sweep="stacked"),
    Objective("debiased", "debiased", (*_bare(dense.debiased), _authors(dense.debiased_authors)), sweep="stacked"),
    Objective("hcl", "hcl", (*_bare(dense.hcl), _authors(dense.hcl_authors)), sweep="stacked"),
    Objective("dhel", "dhel", (*_bare(dense.dhel), _authors(dense.dhel_authors)), sweep="views"),
    Objective("kcl", "kcl", (*_bare(dense.kcl), _authors(dense.kcl_authors)), sweep="views"),
    Objective("alignment_uniformity", "alignment_uniformity", ALIGNMENT_UNIFORMITY, sweep="views"),
    Objective("spectral_contrastive", "spectral_contrastive", SPECTRAL_CONTRASTIVE),
    Objective("supcon", "supcon", SUPCON, sweep="stacked"),
    *(Objective(name, name, _generalised(name), sweep="stacked") for name in ("ucl", "hucl", "scl", "hscl")),
    Objective("sogclr", "sogclr", SOGCLR, sweep="stacked"),
    Objective("isogclr", "isogclr", ISOGCLR, sweep="stacked"),
    Objective("emc2", "emc2", (EMC2,), expectation=dense.emc2_expected),
)
