"""examples/demo/aggregate.py: the table over seeds, against figures worked out by hand."""

import json

import aggregate


def test_aggregate_by_hand(tmp_path, capsys):
    for seed, copies, loss in ((1, 0.8, 0.40), (2, 1.0, 0.42)):
        (tmp_path / f"{seed}.json").write_text(json.dumps(
            {"seed": seed, "copies_off": copies, "copies_on": 0.1, "copies_control": 0.5, "val_loss_off": 0.40, "val_loss_on": loss,
             "ordinary_dropped": 0.04, "repeated_dropped": 0.5, "precision": None, "step_ms_off": 100, "step_ms_on": 110,
             "control": {"source": "interpolated"}}))
    assert aggregate.main([str(tmp_path / "1.json"), str(tmp_path / "2.json")]) == 0
    out = capsys.readouterr().out
    assert "| copies among drawings of repeated pictures | 90.0% (80.0% to 100.0%) | 10.0% (10.0% to 10.0%) |" in out
    assert "| the same against plain, per seed | – | +2.5% (+0.0% to +5.0%) |" in out
    assert "| step time against plain, per seed | – | x1.10 (x1.10 to x1.10) |" in out
    assert "| control: copies of plain at as many kept visits | – | 50.0% (50.0% to 50.0%) |" in out
    assert "(interpolated between its samples)" in out and "seeds 1, 2" in out


def test_aggregate_refuses_other_files(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    assert aggregate.main([str(tmp_path / "x.json")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
