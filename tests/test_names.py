"""Names of losses and samplers: any case, and what an unknown name is answered."""

import pytest
from cases import views
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.__main__ import main
from contrastive_zoo.registry import batch_samplers, losses, samplers

N, B = 12, 4
SPELLINGS = [str.upper, str.title, str.capitalize, lambda name: f" {name}\n"]


@pytest.mark.parametrize("spell", SPELLINGS, ids=["UPPER", "Title", "Capital", "spaces"])
def test_case_does_not_matter(spell: object) -> None:
    for name in zoo.list_losses():
        assert zoo.describe_loss(spell(name)).name == name
        assert zoo.get_loss(spell(name), num_samples=N).card.name == name
    assert zoo.get_loss(spell("simclr")).card.name == "ntxent"
    for name in zoo.list_samplers():
        assert zoo.describe_sampler(spell(name)).name == name
        assert type(zoo.get_sampler(spell(name), num_samples=N)) is type(zoo.get_sampler(name, num_samples=N))
        loss_fn = zoo.get_loss("sampled", num_samples=N, sampler=spell(name))
        assert type(loss_fn.objective.sampler) is type(zoo.get_sampler(name, num_samples=N))
    for name in zoo.list_batch_samplers():
        assert zoo.describe_batch_sampler(spell(name)).name == name
        size = {} if name == "full" else {"batch_size": B}
        assert len(zoo.get_batch_sampler(spell(name), num_samples=N, **size)) > 0
    ordered = zoo.get_batch_sampler("ordered", num_samples=N, batch_size=B, loss=spell("dcl"))
    assert ordered._loss_fn.card.name == "dcl"


@pytest.mark.parametrize("name", ["NTXent", "SimCLR", "MCMC", "Shuffle", "emc2"])
def test_the_command_ignores_case(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name])
    assert capsys.readouterr().out.lower().startswith({"simclr": "ntxent"}.get(name.lower(), name.lower()))


@pytest.mark.usefixtures("_clean_registries")
def test_own_names_keep_their_case() -> None:
    @zoo.register_loss("MyLoss", aliases=("Mine",))
    def mine(batch: zoo.Batch) -> Tensor:
        """Mine."""
        return -batch.positive_similarity()

    assert "MyLoss" in zoo.list_losses()
    for spelling in ("MyLoss", "myloss", "MYLOSS", "mine", "MINE"):
        assert views().call(zoo.get_loss(spelling)).isfinite()
    for taken in ("myloss", "mINE", "NTXENT", "SimCLR"):
        with pytest.raises(ValueError, match=f"the loss name '{taken}' is taken"):
            zoo.register_loss(taken)(mine)


@pytest.mark.parametrize("name", ["moco", "MoCo", "moco_v2", "mocov3"])
def test_moco_is_made_of_parts(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown loss .*'infonce' with a queue.*zoo.samplers.FeatureQueue.*Available: alig"
    ) as it:
        zoo.get_loss(name)
    assert "Did you mean" not in str(it.value)


@pytest.mark.parametrize("name", ["vicreg", "VICReg", "barlow_twins", "BYOL", "simsiam", "SwAV", "dino", "dinov2"])
def test_methods_without_negatives(name: str) -> None:
    with pytest.raises(ValueError, match=r"contrasts no negatives") as caught:
        zoo.get_loss(name)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nt-xent", "ntxent"),
        ("nt_xent", "ntxent"),
        ("NTXentLoss", "ntxent"),
        ("info_nce", "infonce"),
        ("SupConLoss", "supcon"),
        ("sogclar", "sogclr"),
        ("simclr_v2", "simclr"),
        ("debiaed", "debiased"),
        ("align_uniform", "alignment_uniformity"),
    ],
)
def test_the_closest_comes_first(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown loss '{name}'. Did you mean '{meant}'.*Available: {meant}, "):
        zoo.get_loss(name)


@pytest.mark.parametrize("name", ["x", "", "cross_entropy", "lightly", None, 3, ["ntxent"]])
def test_no_nonsense_is_proposed(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown loss .*Available: alignment_uniformity, ") as caught:
        zoo.get_loss(name)
    assert "Did you mean" not in str(caught.value)


def test_a_name_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"unknown loss 'MCMC'. There is a sampler 'mcmc'"):
        zoo.get_loss("MCMC")
    with pytest.raises(ValueError, match=r"unknown sampler 'ntxent'. There is a loss 'ntxent'"):
        zoo.get_sampler("ntxent", num_samples=N)
    with pytest.raises(ValueError, match=r"unknown batch sampler 'topk'. There is a sampler 'topk'"):
        zoo.get_batch_sampler("topk", num_samples=N, batch_size=B)
    with pytest.raises(ValueError, match=r"Did you mean 'spectral_contrastive'.*There is a batch sampler 'spectral'"):
        zoo.get_loss("spectral")


def test_no_two_kinds_share_a_name() -> None:
    """So an error can say of which kind a name is."""
    names = [name for registry in (losses, samplers, batch_samplers) for name in registry.names()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", zoo.list_losses())
def test_what_a_loss_does_not_have_is_said_of_its_name(name: str) -> None:
    loss_fn = zoo.get_loss(name, num_samples=N)
    if "temperature" in loss_fn.card.parameters:
        assert float(loss_fn.temperature) > 0
        return
    instead = ".*It learns loss_fn.logit_scale" if name in ("clip", "siglip") else ""
    with pytest.raises(AttributeError, match=f"^'{name}' has no temperature.{instead}"):
        _ = loss_fn.temperature
    with pytest.raises(AttributeError, match=f"^'{name}' has no temperature.{instead}"):
        loss_fn.temperature = 0.1
    assert not hasattr(loss_fn, "temperature")
