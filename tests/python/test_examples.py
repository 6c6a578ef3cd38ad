"""The example programs run and show what they say."""
import re
import textwrap

import pytest

from conftest import BUILD, ROOT, run_ok, torchrun

EXAMPLES = BUILD / "examples"


def test_toy_denoiser_drops_the_repeated_picture():
    out = run_ok(EXAMPLES / "1-no-gpu-toy-denoiser")
    repeated, others = map(int, re.search(r"dropped: (\d+)% .* (\d+)% of the others", out).groups())
    assert repeated >= 45 and others <= 8, out


def test_ranks_train_the_same():
    alone = run_ok(EXAMPLES / "2-custom-loop-on-ranks", 1)
    (dropped, visits), (others, other_visits) = ((int(a), int(b)) for a, b in re.findall(r"(\d+) of (\d+)", alone))
    assert visits + other_visits == 9600
    assert dropped > 0.4 * visits and others < 0.08 * other_visits, alone
    for ranks in (2, 4):
        together = run_ok(EXAMPLES / "2-custom-loop-on-ranks", ranks)
        said, of_one = ((text.rsplit(" ", 1)) for text in (together, alone))
        assert said[0] == of_one[0]  # the same rows dropped
        assert float(said[1]) == pytest.approx(float(of_one[1]), rel=1e-5)  # summed in another order


def test_ranks_as_processes():
    result = torchrun(2, EXAMPLES / "2-custom-loop-on-ranks")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run_ok(EXAMPLES / "2-custom-loop-on-ranks", 2)


def test_accumulation():
    out = run_ok(EXAMPLES / "3-accumulation")
    whole, accumulated = re.findall(r"(\d+) of 1920 dropped", out)
    assert whole == accumulated and 0 < int(whole) < 1920


def test_a_frozen_copy_shows_the_repeated_picture():
    out = run_ok(EXAMPLES / "6-starting-model")
    repeated, others = map(int, re.search(r"dropped: (\d+)% .* (\d+)% of the others", out).groups())
    assert repeated >= 55 and others <= 3, out


def test_readme_shows_the_example():
    source = (ROOT / "examples" / "1-no-gpu-toy-denoiser.cpp").read_text()
    region = re.search(r"// \[readme\]\n(.*?)\n *// \[/readme\]", source, re.S)[1]
    assert textwrap.dedent(region) in (ROOT / "README.md").read_text()


def test_every_example_says_what_it_shows():
    programs = [*(ROOT / "examples").glob("[0-9]*.cpp"), *(ROOT / "examples").glob("[0-9]*/*.cpp")]
    assert len(programs) >= 5
    for program in programs:
        assert program.read_text().startswith("// "), program
