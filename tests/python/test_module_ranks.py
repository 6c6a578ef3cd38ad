"""import memsieve on several ranks: the laws of docs/collectives.md from Python. Each run has a time limit: a hang is a failure."""
import sys
from pathlib import Path

import module_toy  # noqa: F401 (what each rank imports, imported once; DistributedDataParallel needs torch._dynamo)
import pytest
import torch._dynamo  # noqa: F401
from conftest import forked, torchrun

RANK = Path(__file__).parent / "module_rank.py"


def ranks(number, *words, **environment):
    """Lines that the ranks print, sorted."""
    result = forked(number, RANK, *words, timeout=150, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(result.stdout.splitlines())


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("kind", ["random", "one_rank", "all_dropped"])
def test_ranks_train_as_one_that_holds_all_rows(number, kind):
    assert ranks(number, "laws", kind) == ["the same"] * number


def test_torchrun_starts_such_ranks():
    result = torchrun(2, sys.executable, RANK, "laws", "random", timeout=150)
    assert result.returncode == 0 and result.stdout.splitlines() == ["the same"] * 2, result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["one_rank", "all_dropped"])
def test_sharded_parameters(kind):
    assert ranks(2, "fsdp", kind) == ["the same"] * 2


def test_a_callable_that_raises_on_one_rank_stops_all_at_the_same_step():
    guilty = "step 2: rank 1: Own: on fire"
    assert ranks(3, "raising") == [f"0 2 PeerError: {guilty}", "1 2 Own: on fire", f"2 2 PeerError: {guilty}", "badly"]


def test_bad_input_on_one_rank_stops_all_at_the_same_step():
    words = "step 2: rank 1: batch: sample_id must be int64 [6] on the CPU"
    assert ranks(2, "bad_ids") == [f"0 2 PeerError: {words}", f"1 2 DataError: {words}"]


def test_a_mistake_in_one_ranks_batch_leaves_none_waiting_in_the_models_collectives():
    assert ranks(2, "passes_are_collectives") == ["12 calls for 6 mistakes"] * 2


def test_a_message_that_is_cut_is_still_text():
    first, second = ranks(2, "long_message")
    assert first.startswith("0 2 PeerError: step 2: rank 1: ValueError: aéé") and second == "1 2 ValueError: a" + "é" * 200


def test_not_finite_on_one_rank_stops_all_naming_the_sample():
    lines = ranks(2, "not_finite")
    assert [line[0] for line in lines] == ["0", "1"] and all("NonFiniteError: step 2: sample 7: NaN or Inf" in line for line in lines)


def test_ranks_that_disagree():
    lines = ranks(2, "disagreeing")
    assert len(lines) == 2 and all("threshold" in line or "configuration" in line for line in lines), lines


def test_waiting_lets_other_threads_run():
    first, second, third = ranks(2, "waiting")
    assert first.startswith("0 waited 1.") and first.endswith("counted much")
    assert second.startswith("1 group: is a ") and "member" in second and third.startswith("1 waited 0.")


def test_each_group_of_sieves_passes_over_a_stream_of_its_own():
    assert ranks(4, "subgroups") == ["8 each sample once of 48"] * 4


def test_a_peer_that_is_gone():
    line, = ranks(2, "gone")
    assert line.startswith("0 rank 0: a peer is gone or did not come to the gather: ")


def test_a_group_that_is_closed():
    lines = ranks(2, "closed")
    assert len(lines) == 2 and all("ConfigError: group: torch.distributed does not know it" in line for line in lines), lines


def test_accelerate(tmp_path):
    assert ranks(2, "accelerated", MEMSIEVE_TEST_FOLDER=str(tmp_path)) == ["the same"] * 2


def test_distributed_checkpoints(tmp_path):
    assert ranks(2, "checkpoint", MEMSIEVE_TEST_FOLDER=str(tmp_path)) == ["the same"] * 2
