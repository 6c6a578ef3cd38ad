"""The report as one HTML page: pictures, curves and style lie in the page itself."""

import base64
import difflib
import io
import re
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

import report_data as rd
import report_plots as plots
from report_data import change, percent


def picture(pixels, alt):
    """uint8 [3, H, W] -> an <img> with the PNG in it."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def scored(pixels, score, alt):
    copied = score > rd.COPY
    words = f"{alt}, correlation {score:.2f}" + (", a copy" if copied else "")
    return f'<div class="pic{" copy" if copied else ""}">{picture(pixels, words)}{score:.2f}</div>'


def prompt_card(comparison, index, runs, note):
    """One caption: its training picture and what each run draws for it."""
    prompts = comparison.prompts
    columns = [f'<div><small>training</small><div class="pics"><div class="pic">'
               f'{picture(prompts.images[index], "training picture")}&nbsp;</div></div></div>']
    for name, run in runs:
        drawn = "".join(scored(pixels, score, f"drawn {plots.NAMES[name]}")
                        for pixels, score in zip(run.last_samples[index], comparison.scores[name][index]))
        columns.append(f'<div><small>{plots.SHORT[name]}</small><div class="pics">{drawn}</div></div>')
    return (f'<article class="card"><h3>{escape(prompts.captions[index])}</h3><div class="strip">{"".join(columns)}</div>'
            f'{note}</article>')


def prompt_cards(comparison, indices, dropped):
    runs = [(name, run) for name, run in comparison.runs() if name != "control"]
    width = 72 + sum(8 + 50 * run.last_samples.shape[1] for _, run in runs)
    cards = []
    for index in indices:
        visits, lost, _, _ = dropped.get(int(comparison.prompts.group[index]), (0, 0, 0, False))
        note = f'<span class="soft">{lost} of {visits} visits dropped</span>' if visits else ""
        cards.append(prompt_card(comparison, index, runs, note))
    return f'<div class="cards" style="--card-width: {width}px">{"".join(cards)}</div>'


def most_dropped(comparison, dropped, count=12):
    """The ordinary pictures that lost the largest share of their visits."""
    ordinary = [entry for entry in dropped.values() if not entry[3]]
    worst = sorted((entry for entry in ordinary if entry[1]), key=lambda entry: (-entry[1] / entry[0], -entry[1]))[:count]
    never = sum(entry[1] == 0 for entry in ordinary)
    lost = sorted((entry[1] for entry in ordinary), reverse=True)
    top = max(1, round(len(lost) * 0.05))
    words = f"{never} of {len(ordinary)} ordinary pictures lost no visit."
    if sum(lost):
        words += (f" The {top} that lost most ({percent(top / len(lost), 0)}) account for {percent(sum(lost[:top]) / sum(lost), 0)} of "
                  f"the wrong drops.")
    repeated = comparison.prompts.images[:comparison.count]
    cards = []
    for visits, gone, row, _ in worst:
        nearest = rd.units(comparison.mix.images[row:row + 1]) @ rd.units(repeated).T
        match = int(nearest.argmax())
        cards.append(f'<article class="card"><h3>{escape(comparison.mix.captions[row])}</h3><div class="strip row"><div class="pic">'
                     f'{picture(comparison.mix.images[row], "ordinary picture")}</div><div class="soft">{gone} of {visits} visits'
                     f' dropped<br>nearest repeated picture: {nearest.max():.2f}</div><div class="pic">'
                     f'{picture(repeated[match], "nearest repeated picture")}</div></div></article>')
    return f'<p>{words}</p><div class="cards" style="--card-width: 290px">{"".join(cards)}</div>'


def tile(value, words):
    return f'<div class="tile"><b>{value}</b><span>{words}</span></div>'


def tiles(summary):
    return '<div class="tiles">' + "".join([
        tile(f"{percent(summary['copies_off'], 0)} &rarr; {percent(summary['copies_on'], 0)}",
             f"drawings of repeated pictures that are copies, without and with the filter ({summary['generations']} drawings each)"),
        tile(percent(summary["copies_control"], 0), "control: the plain run at as many visits of the repeated pictures as the "
             "filter kept"),
        tile(percent(summary["ordinary_dropped"]), f"of the visits of ordinary pictures dropped wrongly "
             f"({percent(summary['repeated_dropped'])} of the repeated ones rightly)"),
        tile(change(summary), "validation loss of ordinary pictures, with against without"),
        tile(f"&times;{summary['step_ms_on'] / summary['step_ms_off']:.2f}", "median time of a step, with against without"),
    ]) + "</div>"


def number(value, digits):
    return "n/a" if value is None else f"{value:.{digits}f}"


def figures_table(summary):
    names = ["off"] + (["published"] if "copies_published" in summary else []) + ["on"]

    def dropping(key):
        return ["&ndash;" if name == "off" else percent(summary.get(key if name == "on" else f"{key}_published"))
                for name in names]

    def each(key, show):
        return [show(summary[f"{key}_{name}"]) for name in names]

    control = [percent({"off": summary["copies_off"], "published": summary.get("copies_control_published"),
                        "on": summary["copies_control"]}[name]) for name in names]
    rows = [
        ("Copies among drawings of repeated pictures (own picture)", each("copies", percent)),
        ("&hellip; of any training picture", each("copies_of_any", percent)),
        ("Copies among drawings of ordinary pictures", each("ordinary_copies", percent)),
        ("Control: copies of the plain run at as many kept visits", control),
        ("Mean correlation of repeated pictures' drawings", each("correlation", lambda v: number(v, 3))),
        ("Visits of repeated pictures dropped (recall)", dropping("repeated_dropped")),
        ("Visits of ordinary pictures dropped", dropping("ordinary_dropped")),
        ("Dropped visits that were of repeated pictures (precision)", dropping("precision")),
        ("Validation loss, last", each("val_loss", lambda v: number(v, 4))),
        ("Median time of a step (ms)", each("step_ms", lambda v: number(v, 1))),
        ("Steps", each("last_step", str)),
    ]
    head = "".join(f"<th>{plots.NAMES[name]}</th>" for name in names)
    body = "".join(f"<tr><td>{words}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>" for words, values in rows)
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def quarters_table(summary):
    rows = "".join(f"<tr><td>{words}</td>{''.join(f'<td>{percent(quarter[key])}</td>' for quarter in summary['quarters'])}"
                   f"<td>{percent(summary[key])}</td></tr>"
                   for key, words in (("precision", "precision: dropped visits that were of repeated pictures"),
                                      ("recall", "recall: visits of repeated pictures dropped"),
                                      ("ordinary_dropped", "visits of ordinary pictures dropped")))
    return ('<div class="scroll"><table><thead><tr><th>quarter of the run</th><th>1st</th><th>2nd</th><th>3rd</th><th>4th</th>'
            f'<th>all</th></tr></thead><tbody>{rows}</tbody></table></div>')


def control_words(summary):
    control = summary["control"]
    if control["source"] == "run":
        return f"The control is a run of its own: {percent(control['copies'])} copies, mean correlation {control['correlation']:.3f}."
    below, above = control["between"]
    how = (f"interpolated linearly between its samples at steps {below} and {above}" if below != above
           else f"at its sample of step {below}")
    return (f"A filter also thins the repeated pictures out, and that alone lowers copying. The filtered run kept "
            f"{control['kept_visits']:.0f} visits of the repeated pictures out of {control['all_visits']}; the plain run had made "
            f"as many at step {control['step']:.0f}. There {percent(control['copies'])} of its drawings are copies (mean correlation "
            f"{control['correlation']:.3f}), {how}. The filter does more than thin out as far as it stays below that.")


def figure(svg, words):
    return f"<figure>{svg}<figcaption>{words}</figcaption></figure>" if svg else ""


def curves(comparison):
    on, off = escape(comparison.on.path.name), escape(comparison.off.path.name)
    column, parts = plots.column_over_steps, []
    parts.append(figure(plots.copies_over_steps(comparison), f"Drawings of repeated pictures with correlation &gt; {rd.COPY} with their "
                        f"training picture. From the samples/ of each run."))
    parts.append(figure(plots.dropped_over_steps(comparison), f"Share of visits with weight 0, by window of steps. From {on}/ledger.h5."))
    for name, folder in (("off", off), ("on", on)):
        parts.append(figure(column(comparison, name, "raw_magnitude", "magnitude"),
                            f"Magnitude as measured, {plots.NAMES[name]}: median and quartiles by window of steps; all timesteps "
                            f"that were probed, mixed. From {folder}/ledger.h5."))
        parts.append(figure(column(comparison, name, "z_magnitude", "standardised magnitude"),
                            f"Magnitude standardised per timestep bin, {plots.NAMES[name]}: median and quartiles by window of "
                            f"steps. From {folder}/ledger.h5."))
    parts.append(figure(column(comparison, "on", "score", "evidence"),
                        f"What the sieve judges by: median and quartiles by window of steps. From {on}/ledger.h5."))
    parts.append(figure(plots.evidence(comparison), "Evidence in the last quarter of the filtered run, less the level for dropping: "
                        f"right of the line is beyond it. From {on}/ledger.h5."))
    parts.append(figure(plots.validation_over_steps(comparison), "Loss of ordinary pictures that were never trained on nor used to "
                        "calibrate. From each run's metrics.jsonl."))
    parts.append(figure(plots.step_times(comparison), "Time of each step; the slowest 2% are shown at the right edge. What runs before "
                        "the first step is not in it. From each run's metrics.jsonl."))
    return f'<div class="plots">{"".join(parts)}</div>'


def settings(comparison):
    off, on = comparison.off.config.splitlines(), comparison.on.config.splitlines()
    changed = "\n".join(line for line in difflib.unified_diff(off, on, "without", "with", lineterm="", n=1))
    return (f"<details><summary>What differs between the two runs' config.yaml</summary><pre>{escape(changed) or 'nothing'}</pre>"
            f"</details><details><summary>The filtered run's config.yaml</summary><pre>{escape(comparison.on.config)}</pre></details>")


def told(comparison):
    """What the filter knew about the repetition: group ids count only where evidence is pooled over them."""
    if re.search(r"^\s*pool:\s*[\"']?group\b", comparison.on.config, re.MULTILINE):
        return ("The filter pooled its evidence over group ids: it knew which rows are copies of one picture, not that they are "
                "memorised.")
    return "The filter was not told which rows are copies of one picture."


def introduction(comparison, summary):
    ranks = comparison.on.info.get("world_size")
    where = f" on {ranks} rank{'s' if ranks != 1 else ''}" if ranks else ""
    rows = int(comparison.mix.repeated.sum())
    words = (f"A text-to-image model was fine-tuned{where} on {len(comparison.mix.images)} rows, of which {rows} are "
             f"{comparison.count} pictures repeated {rows / comparison.count:.0f} times each, for {summary['last_step_off']} steps without "
             f"and {summary['last_step_on']} steps with the filter (seed {summary['seed']}). {told(comparison)}")
    warnings = []
    if summary["last_step_off"] != summary["last_step_on"]:
        warnings.append("The two runs have different lengths: their last figures cannot be compared directly.")
    if comparison.off.seed != comparison.on.seed:
        warnings.append(f"The two runs have different seeds ({comparison.off.seed} and {comparison.on.seed}).")
    return f"<p>{words}</p>" + "".join(f"<p><b>{words}</b></p>" for words in warnings)


def render(comparison, summary, title):
    style = Path(__file__).with_name("report_page.css").read_text()
    dropped = rd.dropped_by_picture(comparison.on.visits(), comparison.mix)
    count, every = comparison.count, len(comparison.prompts.images)
    ordinary = ""
    if every > count:
        ordinary = (f"<h2>Ordinary pictures</h2><p>The same for captions of pictures that the training set holds once.</p>"
                    f"{prompt_cards(comparison, range(count, every), dropped)}")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style></head><body><main>
<h1>{escape(title)}</h1>{introduction(comparison, summary)}{tiles(summary)}
<h2>Repeated pictures</h2>
<p>Under each drawing stands its copy score: the correlation of its pixels, mean removed, with the caption's own training picture, over
all channels. Above {rd.COPY} it counts as a copy and is framed. The drawings are those of the last step; visits dropped are the
filtered run's, over all rows of the picture.</p>
{prompt_cards(comparison, range(count), dropped)}
{ordinary}
<h2>All figures</h2>{figures_table(summary)}
<p>{control_words(summary)}</p>
<h2>Over time</h2>{curves(comparison)}
<h2>Precision and recall of dropping</h2>
<p>Against the truth, by visit. Early visits of a repeated picture, when nothing has been memorised yet, count as missed here.</p>
{quarters_table(summary)}
<h2>Ordinary pictures dropped most</h2>{most_dropped(comparison, dropped)}
<h2>Settings</h2>{settings(comparison)}
<p class="soft">Made by tools/report.py from {escape(str(comparison.off.path))} and {escape(str(comparison.on.path))}.</p>
</main></body></html>
"""
