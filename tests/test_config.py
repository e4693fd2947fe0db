"""Laws of the recipe: strict, immutable, never evaluated, the same after saving."""

import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from robustdistiller.config import Recipe, load_recipe
from robustdistiller.errors import UserError
from robustdistiller.evaluation.conditions import ConditionsConfig
from robustdistiller.evaluation.task_file import TaskConfig
from robustdistiller.presets import shipped_names
from robustdistiller.schema import validated


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_shipped_recipes_are_valid_and_described(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.notes


def test_the_shipped_recipes_are_those_that_are_promised():
    promised = {
        "distilhubert-base", "robust-hubert-base", "robust-wavlm-base-plus", "robust-wav2vec2-base",
        "robust-whisper-tiny-en", "edge", "smoke",
    }  # fmt: skip
    assert promised <= set(shipped_names("recipes"))


def test_the_baseline_differs_from_the_robust_recipe_in_input_and_task_alone():
    robust, plain = (load_recipe(name).to_dict() for name in ("robust-hubert-base", "distilhubert-base"))
    differing = {key for key in robust if robust[key] != plain[key]}
    assert differing == {"name", "notes", "environment", "objectives"}
    assert {k for k in robust["environment"] if robust["environment"][k] != plain["environment"][k]} == {
        "clean", "noise", "reverb", "both",
    }  # fmt: skip
    assert plain["objectives"] | {"enhancement": 0} == robust["objectives"] | {"enhancement": 0}


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = load_recipe("edge", ["training.steps=17", "objectives.enhancement.tap=2", "data.speech=[a, b]"])
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        Recipe().training.steps = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stps=1", "Unknown field 'training.stps' in smoke. Did you mean 'steps'?"),
        ("crop_seconds=2", "Did you mean 'data.crop_seconds'?"),
        ("data.steps=2", "Did you mean 'training.steps'?"),
        ("environment.snr_db=5", "valid list (got 5)."),
        ("trainin.steps=1", "Unknown field 'trainin' in smoke. Did you mean 'training'?"),
        ("objectives.enhancement.tapp=last", "Did you mean 'tap'?"),
        ("training.steps=0", "'training.steps' in smoke is wrong: input should be greater than or equal to 1"),
        (
            "environment.snr_db=[20, 0]",
            "'environment.snr_db' in smoke is wrong: it must be [lowest, highest] (got [20, 0]).",
        ),
        (
            "environment.t60_seconds=[0, 1]",
            "input should be greater than or equal to 0.1",
        ),
        ("training.learning_rate=nan", "'training.learning_rate'"),
        ("training.learning_rate=.inf", "'training.learning_rate'"),
        ("training.steps", "--set 'training.steps' has no value"),
        ("teacher.cache=x", "set data.fixed_crops to 1 or more, or leave the cache out."),
        ("name.inner=1", "holds a plain value"),
        ("name={}", "valid string"),
        ("training.steps=[", "cannot be read as YAML"),
        ("training.steps=!!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_a_wrong_field_is_one_sentence_with_its_name(override, message):
    with pytest.raises(UserError) as caught:
        load_recipe("smoke", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def numeric_fields(model, *place):
    """(place, dimension) of every field of a file's sections that holds numbers: 0 for one number, 1 and 2 for lists."""
    for name, field in model.model_fields.items():
        pending, sections, depth = [(field.annotation, 0)], [], None
        while pending:
            kind, inside = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                sections.append((kind, inside))
            elif kind in (int, float):
                depth = inside
            inside += typing.get_origin(kind) is tuple
            pending += [(part, inside) for part in typing.get_args(kind)]
        for kind, inside in sections:
            yield from numeric_fields(kind, *place, name, *([0] if inside else []))
        if depth is not None:
            yield (*place, name), depth


def refused(model, place, value, required):
    """Whether `model` refuses `value` at `place` of a file that has the fields `required`, and for that place."""
    for part in reversed(place):
        value = [value] if part == 0 else {part: value}
    try:
        model.model_validate(required | value)
    except ValidationError as error:
        return any(fault["loc"][: len(place)] == place for fault in error.errors())
    return False


WORDS = {"tap", "folds"}  # a word may stand there as well
NEGATIVE = {"snr_db", "gain_db", "start_snr_db"}


@pytest.mark.parametrize("number", [-1, 0, True, "yes", math.nan, math.inf, -math.inf, 1e308, -1e308, 10**23, 10**400])
def test_no_number_out_of_bounds_passes_a_file(number):
    """Every numeric field of recipes, of pretraining's recipes, tasks and conditions."""
    from robustdistiller.training.pretrain import PretrainConfig

    task = {"name": "a", "kind": "ctc"}
    tried = 0
    for model, required in ((Recipe, {}), (PretrainConfig, {}), (TaskConfig, task), (ConditionsConfig, {})):
        for place, depth in numeric_fields(model):
            may = (number == 0) or (number == -1 and place[-1] in NEGATIVE) or (number == "yes" and place[-1] in WORDS)
            for value in [number, [number], [number, number]] if depth < 2 else [[[number, number]]]:
                tried += 1
                assert may or refused(model, place, value, required), (model.__name__, place, value)
    assert tried > 300


@pytest.mark.parametrize(
    "field",
    [
        "training.steps",
        "training.learning_rate",
        "training.eps",
        "training.clip",
        "data.batch_seconds",
        "student.layers",
        "student.hidden_size",
        "objectives.enhancement.hidden",
        "training.save_every",
        "environment.effects.clipping_percent",
        "environment.effects.high_hz",
        "environment.noises",
    ],
)
def test_what_must_be_above_zero_is(field):
    for value in ("0", "[0, 0]"):
        with pytest.raises(UserError):
            load_recipe(None, [f"{field}={value}"])


@pytest.mark.parametrize(
    "field", ["training.betas=[1, 1]", "environment.noises=[1, 100000000]", "student.layers=100000"]
)
def test_sizes_without_an_end_are_refused(field):
    with pytest.raises(UserError, match="less than"):
        load_recipe(None, [field])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("training: {steps: 3", "not valid YAML"),
        ("training: 3\n", "'training'"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("\x00\x01", "not valid YAML"),
    ],
)
def test_a_broken_recipe_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(path)


def test_an_unknown_recipe_is_named_with_the_closest():
    with pytest.raises(UserError, match="Did you mean 'robust-hubert-base'"):
        load_recipe("robust-hubert-bse")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_override_ends_in_anything_but_a_recipe_or_a_sentence(text):
    try:
        assert isinstance(load_recipe(None, [text]), Recipe)
    except UserError as error:
        assert len(str(error)) > 10


@pytest.mark.parametrize(
    "field",
    [
        "training.steps=true", "training.learning_rate=yes", "training.betas=[1,1]", "training.eps=1e-320",
        "training.weight_decay=1e300", "student.layers=100000", "environment.noises=[1, 100000000]",
        "training.seed=-1", "training.seed=99999999999999999999999", "data.batch_seconds=.inf", "training.steps=1e308",
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_computed_with_are_refused(field):
    with pytest.raises(UserError, match=field.partition("=")[0]):
        load_recipe("mini-robust", [field])


def test_a_recipe_of_the_version_before_opens_or_says_so():
    old = load_recipe("mini-robust").to_dict()
    del old["data"]["microbatch_seconds"]
    old["data"]["batch_seconds"], old["training"]["accumulate"] = 120.0, 1
    data = validated(Recipe, old, "it").data
    assert (data.batch_seconds, data.microbatch_seconds) == (120.0, 120.0)
    old["training"]["accumulate"] = 4
    with pytest.raises(UserError, match=r"accumulate is of the version before: data\.batch_seconds"):
        validated(Recipe, old, "it")
