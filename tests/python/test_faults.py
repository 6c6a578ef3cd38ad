"""A few of the trials of scripts/faults.sh; docs/reliability.md has the figures of many."""
import faults
import pytest


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return faults.Trials(tmp_path_factory.mktemp("faults"), seed=20, run_steps=100)


@pytest.mark.parametrize("kind", ["kill", *faults.KINDS])
def test_the_run_ends_as_if_nothing_had_happened(trials, kind):
    faults.try_once(getattr(trials, kind))


def test_a_trial_whose_fault_meets_no_run_is_repeated_and_never_kept():
    outcomes = [False, False, True]

    def trial():
        with faults.fault() as met:
            met.append(outcomes.pop(0))

    faults.try_once(trial)
    assert outcomes == []
    outcomes = [False] * faults.TRIES
    with pytest.raises(faults.Broken, match="met no run in 5 tries"):
        faults.try_once(trial)


def test_another_end_is_a_broken_promise(trials):
    """What the trials compare with can tell runs apart."""
    with trials.run_folder() as name:
        faults.Run(trials.folder, name, "learning_rate=0.0011").must_end(0)
        with pytest.raises(faults.Broken, match="unet/.* differs"):
            faults.require_same_end(trials.folder / name, trials.whole)
