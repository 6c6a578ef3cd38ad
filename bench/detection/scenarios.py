"""The benchmark's scenarios: which data, which base model, how it is trained."""

from dataclasses import dataclass, field, replace

from .pictures import Recipe

BATCH = 32
LORA = {"rank": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
                                      "conv1", "conv2"]}


@dataclass(frozen=True)
class Scenario:
    """`settings`: keys that differ from configs/demo.yaml. `pool`: evidence is shared within a group. `plain`: the scenario whose
    runs without a filter serve here, too. `parts`: steps at which the figures of dropping are also given. `reported`: stands
    in the table."""

    name: str
    title: str
    recipe: Recipe | None              # None: the demo's own data
    steps: int
    settings: dict = field(default_factory=dict)
    base: str = "models/demo_base"
    pool: bool = False
    plain: str = ""
    parts: dict = field(default_factory=dict)
    draw_every: int = 220
    pictures_per_prompt: int = 2
    reported: bool = True

    @property
    def data(self):
        """Which data set this is; scenarios with one recipe share it."""
        return "a" if self.recipe is None else self.plain or self.name

    @property
    def of_plain(self):
        return self.plain or self.name

    def with_pictures(self, seed):
        """The same with other pictures; the demo's own are always the same."""
        return self if self.recipe is None else replace(self, recipe=replace(self.recipe, seed=seed))


def epochs(count, rows):
    return count * rows // BATCH


NONE_REPEATED = Recipe(repeated=0, new=320, replayed=320, seed=8)
NEAR = Recipe(near=True, seed=4)
EPSILON = {"prediction_type": "epsilon"}
FLOW = {"prediction_type": "flow", "timestep_sampling": "logit_normal"}

SCENARIOS = {scenario.name: scenario for scenario in (
    Scenario("a", "the demo: 16 pictures, 40 copies each", None, 880),
    Scenario("b", "16 other pictures", Recipe(seed=2), 880),
    Scenario("c", "48 pictures, 6 to 12 copies each", Recipe(repeated=48, least=6, most=12, new=250, replayed=250, seed=3), 1100,
             pictures_per_prompt=1),
    Scenario("d", "near copies, no group ids", NEAR, 880),
    Scenario("d_groups", "near copies with group ids", NEAR, 880, pool=True, plain="d"),
    Scenario("e", "epsilon prediction", Recipe(seed=5), 880, EPSILON, base="models/demo_base_epsilon"),
    Scenario("f", "rectified flow, logit-normal timesteps", Recipe(seed=6), 880, FLOW, base="models/demo_base_flow"),
    Scenario("g", "LoRA of rank 8", Recipe(seed=7), 1100, {"lora": LORA, "learning_rate": 4.0e-3}),
    Scenario("h", "no copies, 60 epochs", NONE_REPEATED, epochs(60, 640), {"validation.every": 100}, draw_every=400,
             parts={"20 epochs": epochs(20, 640)}),
    Scenario("i", "one epoch of 18 530 rows, copies with group ids",
             Recipe(least=500, most=500, new=500, replayed=1255, views=6, seed=9), 579, pool=True, draw_every=193),
    Scenario("tune", "16 pictures to tune on, not in the table", Recipe(reserved=True, seed=1), 880, reported=False),
)}

# Fewer steps, to see that everything works; the figures mean nothing.
QUICK = {"a": {"steps": 160, "draw_every": 80}, "h": {"steps": 120, "draw_every": 120, "parts": {"20 epochs": 40}}}


def quick(scenario):
    settings = scenario.settings | {"validation.every": 40, "validation.draws": 2}
    return replace(scenario, settings=settings, **QUICK[scenario.name])


# What a base model is trained with, instead of what configs/demo_base.yaml says.
BASES = {"epsilon": EPSILON, "flow": FLOW}
