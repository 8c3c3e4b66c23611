"""Methods by name, and what makes them comparable."""

import pytest

from das3.benchmark.methods import ABLATION, all_methods, find_methods, method_recipe, total_steps, variants
from das3.errors import RecipeError
from das3.recipe import Recipe, load_recipe, recipe_from
from das3.registry import stage_types


def test_methods_by_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 7\nimages: somewhere\nbatch_size: 3\nalign: {gamma: 1.5}\n")
    found = find_methods(
        ["das3", "shot-im", "align+propagate", "align.gamma=0", "ema_decay=0.5", str(tmp_path / "mine.yaml")]
    )
    assert found == {
        "das3": {},
        "shot-im": {"stages": ["shot-im"]},
        "align+propagate": {"stages": ["align", "propagate"]},
        "align.gamma=0": {"align": {"gamma": 0}},
        "ema_decay=0.5": {"ema_decay": 0.5},
        "mine": {"batch_size": 3, "align": {"gamma": 1.5}},
    }
    with pytest.raises(RecipeError, match="no method is called 'magic'; there are: bn, "):
        find_methods(["magic"])
    (tmp_path / "das3.yaml").write_text("")
    with pytest.raises(RecipeError, match="two methods are called"):
        find_methods(["das3", str(tmp_path / "das3.yaml")])
    with pytest.raises(RecipeError, match="gama"):
        method_recipe(find_methods(["align.gama=0"])["align.gama=0"], {})


def test_every_method_takes_as_many_steps_as_das3():
    """All its stages and rounds together, up to rounding, unless it says otherwise or is das3 with a stage less."""
    usual = total_steps(Recipe())
    for name in ("cbst", "tent", "mean-teacher", "atp", "das3"):
        assert total_steps(method_recipe(find_methods([name])[name], {})) == pytest.approx(usual, abs=2), name
        assert total_steps(method_recipe(find_methods([name])[name], {}, 55)) == pytest.approx(55, abs=2), name
    assert total_steps(method_recipe({"stages": ["bn"]}, {}, 55)) == 0
    assert total_steps(method_recipe({"stages": ["align"]}, {})) == Recipe().options_of("align").steps
    as_adapted = recipe_from(load_recipe("das3-plus"))
    assert method_recipe(find_methods(["das3-plus"])["das3-plus"], {}) == as_adapted
    assert total_steps(method_recipe({"stages": ["tent"], "tent": {"steps": 7}}, {})) == 7
    both = method_recipe({"batch_size": 3, "align": {"gamma": 1.0}}, {"batch_size": 2, "align": {"alpha": 2.0}})
    assert (both.batch_size, both.options_of("align").gamma, both.options_of("align").alpha) == (2, 1.0, 2.0)


def test_all_methods_and_all_variants_are_recipes():
    names = all_methods()
    parts = {"align", "selftrain", "propagate", "atp-align", "atp-selftrain"}
    assert set(names) >= set(stage_types()) - parts | {"das3", "atp"}
    assert not parts & set(names)
    assert list(find_methods(["all", "das3"])) == names
    changed = find_methods([names[0] for names in ABLATION.values()])
    recipes = [method_recipe(given, {}).to_dict() for given in changed.values()]
    assert all(recipe != Recipe().to_dict() for recipe in recipes)
    assert len(variants()) == len(set(variants())) > 20
