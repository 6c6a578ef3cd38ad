"""Which runs the table is made of, and how long they take."""

from memsieve.reports.program import InputError

from . import rules
from .runs import Job
from .scenarios import QUICK, SCENARIOS, quick

SEEDS = (1, 2, 3)
COMPARED = ("evidence2026", "published", "iet_agc", "selective_backprop")
COMPARED_ON = ("a", "d", "e")
SIGNALS_ON = "a"
# Measured on two cores with two processes of one thread: seconds of a plain step, of a drawing of one picture, of one round of
# cyclic denoising of one picture, and of what else a run takes (start, validation, checkpoints).
STEP, DRAWING, ROUND, REST = 0.225, 0.1, 0.05, 25
# How many times as long a step takes.
COST = {"off": 1.0, "default": 1.06, "evidence2026": 1.3, "published": 1.32, "iet_agc": 1.02, "selective_backprop": 1.02}


def in_table():
    """(scenario, rule, seed) of everything that the table shows, in the order of the runs: seed by seed, and a run beside the
    plain run that it is compared with."""
    for seed in SEEDS:
        for scenario in SCENARIOS.values():
            if scenario.reported:
                yield from ((scenario.name, rule, seed) for rule in rules_in_table(scenario, seed))


def rules_in_table(scenario, seed):
    if not scenario.plain:
        yield "off"
    yield "default"
    if seed == SEEDS[0] and scenario.name in COMPARED_ON:
        yield from COMPARED
    if seed == SEEDS[0] and scenario.name == SIGNALS_ON:
        yield from (f"signal:{name}" for name in rules.SIGNALS)


def wanted(options):
    """(scenario, rule, seed) that the options ask for: of the table, or, if that has none such, the very one."""
    if options.scenario is not None and options.scenario not in SCENARIOS:
        raise InputError(f"--scenario {options.scenario}: no such scenario; there are {', '.join(SCENARIOS)}")
    if options.rule is not None and options.rule not in rules.RULES:
        raise InputError(f"--rule {options.rule}: no such rule; there are {', '.join(rules.RULES)}")
    if options.quick:
        if options.scenario is not None and options.scenario not in QUICK:
            raise InputError(f"--scenario {options.scenario}: --quick has {', '.join(QUICK)} alone")
        every = [(name, rule, SEEDS[0]) for name in QUICK for rule in ("off", "default")]
    else:
        every = list(in_table())
    fits = [one for one in every if all(asked is None or asked == has
                                        for asked, has in zip((options.scenario, options.rule, options.seed), one))]
    if fits:
        return fits
    names = [options.scenario] if options.scenario else list(QUICK if options.quick else dict.fromkeys(n for n, _, _ in every))
    chosen = [options.rule] if options.rule else ["off", "default"]
    return [(name, rule, options.seed if options.seed is not None else SEEDS[0]) for name in names for rule in chosen]


def jobs(place, options):
    """The jobs that the options ask for; a scenario that has another's plain runs is led back to them."""
    result = {}
    for name, rule, seed in wanted(options):
        if rule == "off":
            name = SCENARIOS[name].of_plain
        scenario, suffix = SCENARIOS[name], ""
        if options.pictures is not None and scenario.recipe is not None:
            scenario, suffix = scenario.with_pictures(options.pictures), f"-pictures-{options.pictures}"
        job = Job(place, quick(scenario) if options.quick else scenario, rule, seed, suffix)
        result.setdefault(job.name, job)
    return list(result.values())


def minutes(job, rounds):
    """About how long a job takes on two cores."""
    scenario = job.scenario
    repeated = 16 if scenario.recipe is None else scenario.recipe.repeated
    sheets = scenario.steps // scenario.draw_every + 1
    seconds = scenario.steps * STEP * COST.get(job.rule, COST["default"]) + REST
    seconds += sheets * (repeated + 16) * scenario.pictures_per_prompt * DRAWING
    return (seconds + rounds * repeated * scenario.pictures_per_prompt * ROUND) / 60
