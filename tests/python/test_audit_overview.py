"""memsieve audit-overview: the figures that scripts/audit.sh gathers."""
import json


def test_an_overview_of_audits_that_measured_less_is_refused_in_a_line(tmp_path, capsys):
    from memsieve.commands import audit_overview
    from memsieve.reports.audit_overview import AUDITS, Overview
    entry = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    summary = {"command": "any", "scores": {"magnitude_first": {"auc": entry}}, "copied": entry, "prompts": [],
               "methods": [{"method": "none", "copies": entry}, {"method": "embedding", "copies": entry}],
               "table": [{"model": model, "method": "none",
                          "prompts": dict.fromkeys(("similarity_max", "similarity_top3", "similarity_share"), entry),
                          "general": dict.fromkeys(("similarity_max", "similarity_to_plain", "clip"), entry)} for model in (0, 1)],
               "after": {"with_caption": {"share": entry}, "with_optimised_states": {"share": entry}}, "p_value": 0.1,
               "tests": [{"p_value": 0.2}]}
    for name in AUDITS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "measurements.jsonl").write_text("{}\n")
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    figures = Overview.read(tmp_path).figures()
    assert figures["copies_mitigated"] == 0.5 and figures["benchmark"]["on"]["none"]["similarity_share"] == 0.5
    assert figures["unauthorised_p"] == figures["unauthorised_p_without"] == 0.2
    for name, lacks, said in (("prune", "after", "'after'"), ("mitigate", "methods", "'methods'"), ("benchmark", "table", "'table'"),
                              ("detect_on", "scores", "'scores'")):
        less = {key: value for key, value in summary.items() if key != lacks}
        (tmp_path / name / "summary.json").write_text(json.dumps(less))
        assert audit_overview.main(["--audits", str(tmp_path), "--out", str(tmp_path)]) == 3
        printed = capsys.readouterr().err
        assert f"the audits lack a figure ({said})" in printed and printed.count("\n") == 1
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "check_on" / "summary.json").write_text(json.dumps({**summary, "copied": None}))
    assert audit_overview.main(["--audits", str(tmp_path), "--out", str(tmp_path)]) == 3
    assert "the audits lack a figure (one of them)" in capsys.readouterr().err
