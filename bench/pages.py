"""From the rows of a run to Markdown and HTML: medians with spread, goals, ratios against the baseline, plots."""

from __future__ import annotations

import statistics
from html import escape
from typing import Any

from goals import compared, goals
from net.record import percentile

# Metrics of many samples a run: their tail says more than the maximum.
TAILS = ("rtt_us", "dial_ms", "warm_ms", "open_ms", "cold_ms")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #d8dee4; text-align: left }
.met { color: #116329 } .missed, .worse { color: #a40e26; font-weight: 600 }
svg text { font: 12px system-ui, sans-serif }
"""
BAR_H, LABEL_W, PLOT_W, VALUE_W = 22, 300, 420, 90


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The run without its single values: median, spread, tail, number."""
    rows = []
    for row in result["rows"]:
        values = row["values"]
        figures = {
            "median": statistics.median(values), "min": min(values), "max": max(values), "p99": percentile(values, 0.99),
            "p99_9": percentile(values, 0.999), "mean": statistics.fmean(values),
        }  # fmt: skip
        kept = {k: row[k] for k in ("scenario", "contender", "metric", "unit")} | {"n": len(values)}
        rows.append(kept | {k: round(v, 4) for k, v in figures.items()})
    return {k: v for k, v in result.items() if k != "rows"} | {"rows": rows}


def grouped(result: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """scenario: metric: summary rows."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in summary(result)["rows"]:
        out.setdefault(row["scenario"], {}).setdefault(row["metric"], []).append(row)
    return out


def number(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def headlines(result: dict[str, Any]) -> list[str]:
    """The machine, then each run: a table may hold parts of several."""
    m = result["machine"]
    lines = [f"{m['cpu']}, {m['cores']} cores, VAES {'yes' if m['vaes'] else 'no'}, Linux {m['kernel']}, Python {m['python']}"]
    for run in result["runs"]:
        m = run["machine"]
        lines.append(f"{run['begun']}, {run['took_s']} s, commit {m['commit']}, load at the end {m['load'][0]}: {run['command']}")
    return lines


# ---- Markdown ----


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)]


def markdown(result: dict[str, Any], baseline: dict[str, float]) -> str:
    out = ["# Benchmark results", "", *(f"* {line}" for line in headlines(result)), ""]
    out += ["Medians of interleaved runs (minimum-maximum); docs/benchmarks.md explains them."]
    lines = [[g.text, number(g.value) if g.value is not None else "", f"{g.op} {g.limit:g}", g.verdict] for g in goals(result)]
    out += ["", "## Goals", "", *table(["goal", "value", "wanted", ""], lines)]
    for scenario, metrics in grouped(result).items():
        labels = {r["contender"]: None for rows in metrics.values() for r in rows}
        cells = {(r["contender"], r["metric"]): cell(r) for rows in metrics.values() for r in rows}
        lines = [[label, *(cells.get((label, metric), "") for metric in metrics)] for label in labels]
        out += ["", f"## {scenario}", "", *table(["", *(heading(rows[0]) for rows in metrics.values())], lines)]
    checks = [[what, f"{now:.3g}", f"{then:.3g}", verdict] for what, now, then, verdict in compared(result, baseline)]
    if checks:
        out += ["", "## Against the baseline", "", "Ratio to the reference loop of the same run; higher is better.", ""]
        out += table(["figure", "now", "baseline", ""], checks)
    if result["missing"]:
        out += ["", "## Not measured", "", *(f"- {missing(m)}".replace("\n", " ") for m in result["missing"])]
    return "\n".join(out) + "\n"


def cell(row: dict[str, Any]) -> str:
    """Median and spread; of times the tail, where there are enough samples to speak of it; of tries how many succeeded."""
    if row["metric"] == "finished":
        return f"{row['mean'] * row['n']:.0f} of {row['n']}"
    if row["metric"] not in TAILS or row["n"] < 50:
        return number(row["median"]) + (f" ({number(row['min'])}-{number(row['max'])})" if row["n"] > 1 else "")
    return " / ".join([number(row["median"]), number(row["p99"])] + ([number(row["p99_9"])] if row["n"] >= 1000 else []))


def heading(row: dict[str, Any]) -> str:
    many = row["metric"] in TAILS and row["n"] >= 50
    return row["unit"] + (" p50 / p99" + (" / p99.9" if row["n"] >= 1000 else "") if many else "")


def missing(m: dict[str, str]) -> str:
    return f"{m['scenario']}, {m['contender']}: {m['reason']}"


# ---- HTML ----


def plot(unit: str, rows: list[dict[str, Any]]) -> str:
    """Horizontal bars of the medians, whiskers from the minimum to the maximum, or to p99."""
    rows = sorted(rows, key=lambda r: -r["median"])
    reach = [r["p99"] if r["metric"] in TAILS else r["max"] for r in rows]
    scale = PLOT_W / max([*reach, 1e-9])
    size = f'width="{LABEL_W + PLOT_W + VALUE_W}" height="{BAR_H * len(rows) + 8}"'
    parts = [f'<h3>{escape(unit)}</h3><svg {size} role="img">']
    for i, row in enumerate(rows):
        y, color = 4 + i * BAR_H, "#0969da" if row["contender"].startswith("pilot") else "#8c959f"
        width, low, high = max(row["median"], 0) * scale, max(row["min"], 0) * scale, max(reach[i], 0) * scale
        parts.append(
            f'<text x="{LABEL_W - 8}" y="{y + 14}" text-anchor="end">{escape(row["contender"])}</text>'
            f'<rect x="{LABEL_W}" y="{y + 3}" width="{width:.1f}" height="{BAR_H - 8}" fill="{color}"/>'
            f'<line x1="{LABEL_W + low:.1f}" x2="{LABEL_W + high:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="#1b1f24"/>'
            f'<text x="{LABEL_W + max(width, high) + 6:.1f}" y="{y + 14}">{number(row["median"])}</text>'
        )
    return "".join(parts) + "</svg>"


def html(result: dict[str, Any], baseline: dict[str, float]) -> str:
    body = ["<h1>Benchmark results</h1><ul>", *(f"<li>{escape(line)}" for line in headlines(result)), "</ul>"]
    body.append("<p>Medians; lines from the minimum to the maximum, or to the 99th percentile of times.</p>")
    body.append("<h2>Goals</h2><table><tr><th>goal<th>value<th>wanted<th></tr>")
    for goal in goals(result):
        value, wanted = number(goal.value) if goal.value is not None else "", escape(f"{goal.op} {goal.limit:g}")
        body.append(f'<tr><td>{escape(goal.text)}<td>{value}<td>{wanted}<td class="{goal.verdict}">{goal.verdict}</tr>')
    body.append("</table>")
    for scenario, metrics in grouped(result).items():
        body.append(f"<h2>{escape(scenario)}</h2>")
        body += [plot(rows[0]["unit"], rows) for rows in metrics.values()]
    checks = list(compared(result, baseline))
    if checks:
        body.append("<h2>Against the baseline</h2><table><tr><th>ratio to the reference loop<th>now<th>baseline<th></tr>")
        body += [f'<tr><td>{escape(w)}<td>{n:.3g}<td>{t:.3g}<td class="{v}">{v}</tr>' for w, n, t, v in checks]
        body.append("</table>")
    if result["missing"]:
        body += ["<h2>Not measured</h2><ul>", *(f"<li>{escape(missing(m))}" for m in result["missing"]), "</ul>"]
    return f"<!doctype html><meta charset=utf-8><title>Benchmark results</title><style>{STYLE}</style>{''.join(body)}\n"
