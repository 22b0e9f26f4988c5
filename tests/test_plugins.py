"""Names from outside: registered by users, or found through the entry points of installed packages."""

import sys
from pathlib import Path

import pytest
import torch
from cases import views
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.__main__ import main

pytestmark = pytest.mark.usefixtures("_clean_registries")

OBJECTIVE = '''
"""Mean squared distance of the views."""

import contrastive_zoo as zoo
from torch import Tensor


@zoo.register_loss("{name}", aliases=("{name}_too",), title="Alignment", ranges={{"power": zoo.Range(0)}})
def squared_distance(batch: zoo.Batch, *, power: float = 2.0) -> Tensor:
    """Squared distance of the two views of each sample, (B, 1)."""
    return (batch.view(0) - batch.view(1)).norm(dim=1, keepdim=True) ** power
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts a package on the path whose metadata is that of an installed one."""

    def put(source: str, entry_points: str, module: str = "zoo_plugin") -> None:
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield put
    for module in ("zoo_plugin", "zoo_plugin_two"):
        sys.modules.pop(module, None)


def test_a_plugin_is_listed_described_and_made(install: object) -> None:
    install(OBJECTIVE.format(name="distance"), "[contrastive_zoo.losses]\ndistance = zoo_plugin\n")
    assert "distance" in zoo.list_losses()
    assert "zoo_plugin" not in sys.modules, "it is loaded when first asked for"
    assert zoo.describe_loss("distance").parameters == {"power": 2.0}
    batch, loss_fn = views(), zoo.get_loss("distance", power=1.0)
    loss = batch.call(loss_fn)
    rows = torch.nn.functional.normalize(torch.stack(batch[:2]), dim=2)
    torch.testing.assert_close(loss, (rows[0] - rows[1]).norm(dim=1).mean())
    assert zoo.get_loss("distance_too").card.name == "distance"
    assert zoo.list_losses().count("distance") == 1
    with pytest.raises(ValueError, match=r"power must be a finite number in \[0"):
        zoo.get_loss("distance", power=-1.0)


def test_a_plugin_with_a_name_of_its_own_for_the_object(install: object) -> None:
    install(OBJECTIVE.format(name="distance"), "[contrastive_zoo.losses]\ndistance = zoo_plugin:squared_distance\n")
    assert zoo.get_loss("distance").card.title == "Alignment"


def test_a_typing_mistake_is_told_of_plugins_too(install: object) -> None:
    install(OBJECTIVE.format(name="distance"), "[contrastive_zoo.losses]\ndistance = zoo_plugin\n")
    with pytest.raises(ValueError, match=r"unknown loss 'distanse'. Did you mean 'distance'.*ntxent"):
        zoo.get_loss("distanse")


def test_a_plugin_that_does_not_load(install: object) -> None:
    install("import no_such_package\n", "[contrastive_zoo.losses]\nbroken = zoo_plugin\n")
    assert zoo.get_loss("ntxent")
    with pytest.raises(ImportError, match="'zoo_plugin' behind the loss 'broken' failed to load: No module named") as caught:
        zoo.get_loss("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("import sys\nsys.exit()", r"it called sys.exit\(None\)"),
        ("import sys\nsys.exit(3)", r"it called sys.exit\(3\)"),
        ("raise SystemExit('no licence')", r"it called sys.exit\('no licence'\)"),
        ("raise GeneratorExit('odd')", "odd"),
        ("raise RuntimeError('too late')", "too late"),
        ("1 / 0", "division by zero"),
    ],
)
@pytest.mark.parametrize("kind", ["losses", "samplers", "batch_samplers"])
def test_a_plugin_that_ends_badly_after_it_registered(install: object, ending: str, said: str, kind: str) -> None:
    """The program goes on, and the name works no better the second time."""
    source = OBJECTIVE.format(name="distance") + (
        "\n@zoo.register_sampler('near')\nclass Near:\n    def __init__(self, *, seed=0): pass\n"
        "\n@zoo.register_batch_sampler('all_again')\nclass AllAgain(zoo.batch_samplers.FullBatch): pass\n"
    )
    name = {"losses": "distance", "samplers": "near", "batch_samplers": "all_again"}[kind]
    install(f"{source}\n{ending}\n", f"[contrastive_zoo.{kind}]\n{name} = zoo_plugin\n")
    describe = {"losses": zoo.describe_loss, "samplers": zoo.describe_sampler, "batch_samplers": zoo.describe_batch_sampler}
    for _ in range(3):
        with pytest.raises(ImportError, match=f"behind the .* '{name}' failed to load: {said}"):
            describe[kind](name)
    names = {"losses": zoo.list_losses(), "samplers": zoo.list_samplers(), "batch_samplers": zoo.list_batch_samplers()}
    for other, registered in (("losses", "distance"), ("samplers", "near"), ("batch_samplers", "all_again")):
        assert (registered in names[other]) == (other == kind), "nothing of it is left, but for what its metadata lists"
    with pytest.raises(ValueError, match="unknown loss 'distance_too'"):
        zoo.get_loss("distance_too")
    assert views().call(zoo.get_loss("ntxent")).isfinite()


def test_an_interruption_by_the_user_is_no_failure(install: object) -> None:
    install(
        f"{OBJECTIVE.format(name='distance')}\nraise KeyboardInterrupt\n", "[contrastive_zoo.losses]\ndistance = zoo_plugin\n"
    )
    with pytest.raises(KeyboardInterrupt):
        zoo.get_loss("distance")
    with pytest.raises(KeyboardInterrupt):
        zoo.get_loss("distance")


def test_a_plugin_that_does_not_load_is_listed_with_the_reason(install: object, capsys: pytest.CaptureFixture[str]) -> None:
    install("import sys\nsys.exit(1)\n", "[contrastive_zoo.losses]\nbroken = zoo_plugin\n")
    main([])
    listed = capsys.readouterr().out
    assert "failed to load: it called sys.exit(1)" in listed
    assert "ntxent" in listed
    with pytest.raises(SystemExit) as caught:
        main(["Broken"])
    assert caught.value.code == 2
    assert "failed to load" in capsys.readouterr().err


def test_a_plugin_of_a_name_in_capitals(install: object) -> None:
    install(OBJECTIVE.format(name="Distance"), "[contrastive_zoo.losses]\nDistance = zoo_plugin\n")
    assert "Distance" in zoo.list_losses()
    assert zoo.get_loss("distance").card.name == "Distance"
    assert zoo.list_losses().count("Distance") == 1


def test_a_plugin_that_registers_nothing(install: object) -> None:
    install("x = 1\n", "[contrastive_zoo.losses]\nnothing = zoo_plugin\n")
    with pytest.raises(ImportError, match="was loaded but registered no loss 'nothing'"):
        zoo.get_loss("nothing")


def test_a_plugin_that_takes_a_name_of_the_zoo(install: object) -> None:
    install(OBJECTIVE.format(name="ntxent"), "[contrastive_zoo.losses]\nanother = zoo_plugin\n")
    with pytest.raises(ImportError, match="the loss name 'ntxent' is taken"):
        zoo.get_loss("another")
    assert zoo.get_loss("ntxent").card.title.startswith("NT-Xent")


def test_plugins_for_samplers_and_batch_samplers(install: object) -> None:
    source = (
        "import contrastive_zoo as zoo\n"
        "from contrastive_zoo.batch_samplers import FullBatch\n"
        "@zoo.register_sampler('none_at_all')\n"
        "class NoneAtAll:\n    def __init__(self, *, seed=0): pass\n"
        "@zoo.register_batch_sampler('all_again')\n"
        "class AllAgain(FullBatch): pass\n"
    )
    points = "[contrastive_zoo.samplers]\nnone_at_all = zoo_plugin\n[contrastive_zoo.batch_samplers]\nall_again = zoo_plugin\n"
    install(source, points)
    assert "none_at_all" in zoo.list_samplers()
    assert type(zoo.get_sampler("none_at_all")).__name__ == "NoneAtAll"
    assert list(zoo.get_batch_sampler("all_again", num_samples=3)) == [[0, 1, 2]]


def test_an_own_function_is_an_objective() -> None:
    @zoo.register_loss("mine", title="Mine", needs={"labels"})
    def mine(batch: zoo.Batch, *, temperature: Tensor | float = 0.2) -> Tensor:
        """Mean of similarities."""
        assert batch.labels is not None
        return -batch.positive_similarity() / temperature

    batch = views()
    loss_fn = zoo.get_loss("mine", temperature=0.5)
    assert loss_fn.needs == {"labels"}
    assert batch.call(loss_fn).isfinite()
    with pytest.raises(ValueError, match="'mine' needs labels"):
        loss_fn(batch.z1, batch.z2)
    assert zoo.describe_loss("mine").summary == "Mean of similarities."
    loss_fn.temperature = 0.1
    with pytest.raises(ValueError, match="temperature must be"):
        zoo.get_loss("mine", temperature=-1.0)


def test_an_own_class_may_keep_state() -> None:
    @zoo.register_loss("counting", title="Counting", stateful=True, draws=True, needs={"index"})
    class Counting(zoo.Objective):
        """Counts visits."""

        def __init__(self, *, num_samples: int, seed: int, temperature: float = 0.5) -> None:
            super().__init__(temperature)
            self.seed = seed
            self.register_buffer("visits", torch.zeros(num_samples))

        def forward(self, batch: zoo.Batch) -> Tensor:
            self.visits[batch.index] += 1
            return -batch.positive_similarity()

    loss_fn, batch = zoo.get_loss("counting", num_samples=40, seed=3), views()
    batch.call(loss_fn)
    assert loss_fn.objective.seed == 3
    assert loss_fn.half().state_dict()["objective.visits"].dtype == torch.float32
    assert loss_fn.state_dict()["objective.visits"].sum() == 12
    assert zoo.describe_loss("counting").parameters == {"temperature": 0.5}
    with pytest.raises(ValueError, match="pass num_samples"):
        zoo.get_loss("counting")


def test_names_are_taken_once() -> None:
    def function(batch: zoo.Batch) -> Tensor:
        """Nothing."""
        return batch.positive_similarity()

    for name in ("ntxent", "simclr"):
        with pytest.raises(ValueError, match=f"the loss name '{name}' is taken"):
            zoo.register_loss(name)(function)
    with pytest.raises(ValueError, match="the loss name 'simclr' is taken"):
        zoo.register_loss("new_name", aliases=("simclr",))(function)
    assert "new_name" not in zoo.list_losses()


def test_a_class_that_is_no_objective_is_refused() -> None:
    @zoo.register_loss("module")
    class Module(torch.nn.Module):
        """Forgot its base class."""

    with pytest.raises(TypeError, match=r"'module' is registered with .* no contrastive_zoo.Objective"):
        zoo.get_loss("module")


def test_an_objective_without_forward_says_so() -> None:
    @zoo.register_loss("empty")
    class Empty(zoo.Objective):
        """Forgot its method."""

    with pytest.raises(NotImplementedError, match=r"Empty must implement forward\(batch\)"):
        views().call(zoo.get_loss("empty"))
