"""The four verbs of negative samplers."""

import pytest

import contrastive_zoo as zoo
from contrastive_zoo.samplers import ChainSampler


def test_list_get_describe() -> None:
    assert "mcmc" in zoo.list_samplers()
    assert zoo.list_samplers() == sorted(zoo.list_samplers())
    for name in zoo.list_samplers():
        card = zoo.describe_sampler(name)
        assert card.name == name
        assert card.title in str(card)
    sampler = zoo.get_sampler("mcmc", num_samples=5, burn_in=0.2, seed=3)
    assert isinstance(sampler, ChainSampler)
    assert (sampler.burn_in, sampler.seed, sampler.num_samples) == (0.2, 3, 5)
    assert {"uniform", "topk", "gumbel", "mcmc", "queue"} <= set(zoo.list_samplers())


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"unknown sampler 'mcmcm'. Did you mean 'mcmc'"):
        zoo.get_sampler("mcmcm")
    with pytest.raises(ValueError, match="unknown sampler"):
        zoo.describe_sampler("")
    with pytest.raises(TypeError, match=r"sampler 'mcmc' has no parameter 'burnin'. Did you mean 'burn_in'"):
        zoo.get_sampler("mcmc", num_samples=5, burnin=0.5)
    with pytest.raises(ValueError, match="burn_in must be a finite number"):
        zoo.get_sampler("mcmc", num_samples=5, burn_in=1.0)
    with pytest.raises((TypeError, ValueError), match="seed"):
        zoo.get_sampler("mcmc", num_samples=5, seed=-1)
    with pytest.raises(TypeError, match="seed"):
        zoo.get_sampler("mcmc", num_samples=5, seed=0.5)
    with pytest.raises(TypeError, match=r"'gumbel' keeps something for each sample: pass num_samples=len\(dataset\)"):
        zoo.get_sampler("gumbel")
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        zoo.get_sampler("gumbel", num_samples=0)
    for name in ("uniform", "topk", "gumbel", "queue"):
        with pytest.raises(ValueError, match="num_negatives must be"):
            zoo.get_sampler(name, num_samples=5, num_negatives=0)
        with pytest.raises(TypeError, match="num_negatives must be a whole number"):
            zoo.get_sampler(name, num_samples=5, num_negatives=2.5)


@pytest.mark.usefixtures("_clean_registries")
def test_own_samplers_can_be_registered() -> None:
    @zoo.register_sampler("always_first", title="Always the first row")
    class AlwaysFirst:
        def __init__(self, *, offset: int = 0, seed: int = 0) -> None:
            self.offset = offset

    assert "always_first" in zoo.list_samplers()
    assert zoo.get_sampler("always_first", offset=2).offset == 2
    assert zoo.describe_sampler("always_first").parameters == {"offset": 0}
    with pytest.raises(ValueError, match="sampler name 'mcmc' is taken"):
        zoo.register_sampler("mcmc")(AlwaysFirst)
