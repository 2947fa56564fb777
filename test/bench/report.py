"""Tables and plots of what was measured."""
import json
import math
import pathlib
import statistics

from rivals import HERE, RIVALS

# Readable on white and on black.
COLOURS = {"ours": "#2f81f7", "ours-report": "#2f81f7", "a": "#8b949e", "b": "#d29922", "c": "#3fb950",
           "d": "#a371f7", "e": "#f778ba", "f": "#768390", "sources": "#db6d28"}
INK = "#848d97"


def groups(results, *keys):
    """Results with equal keys, in order of appearance."""
    found = {}
    for result in results:
        found.setdefault(tuple(result[k] for k in keys), []).append(result)
    return found


def median(results, what):
    values = [r[what] for r in results if r.get(what) is not None]
    return statistics.median(values) if values else math.nan


def spread(results, what, digits=1, factor=1):
    """Median (min-max)."""
    values = [r[what] * factor for r in results if r.get(what) is not None]
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(head, rows):
    """Markdown whose columns line up on a terminal, too."""
    rows = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]])


def percent(share):
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def latency(group, what):
    return f"{1000 * median(group, f'{what}_p50'):.2f} / {1000 * median(group, f'{what}_p99'):.2f}"


def visits(group):
    """Index entries read per row; of ours, by lane.  Queues walk in their own ways."""
    family, every, requested = RIVALS[group[0]["rival"]].family, median(group, "visits"), median(group, "requested")
    if family in ("ours", "runs", "sources"):
        return f"{every - requested:.1f} + {requested:.1f}"
    return f"{every:.1f}" if family in "bcf" else "-"


def passed(group):
    """Entries passed over per row taken, by cause: others have the row; there is none to see, or it was not looked at."""
    if RIVALS[group[0]["rival"]].family not in ("b", "c", "ours", "runs", "sources"):
        return "-"
    seen, every = median(group, "fetched"), median(group, "visits")
    return f"{seen - 1:.1f}, {every - seen:.1f}"


def ratio(group, other, what="cpu"):
    return f"{median(group, what) / median(other, what):.2f}" if other else "-"


def ours(results, **where):
    """Our results for this case; of the ways to report, the one that costs less."""
    found = groups([r for r in results if r["rival"] in ("ours", "ours-report")
                    and all(r[k] == v for k, v in where.items())], "rival").values()
    return min(found, key=lambda group: median(group, "cpu"), default=[])


# -------------------------------------------------------------------- tables

def cycles(results):
    rows = []
    for (batch, clients, rival), group in sorted(
            groups(results["rounds"], "batch", "clients", "rival").items(),
            key=lambda item: (item[0][:2], list(RIVALS).index(item[0][2]))):
        mine = ours(results["rounds"], batch=batch, clients=clients)
        rows.append([
            RIVALS[rival].title, batch, clients, spread(group, "cpu"),
            f"{median(mine, 'cpu') / median(group, 'cpu'):.2f}",
            f"{median(group, 'background'):.1f}", f"{median(group, 'vacuum'):.1f}", spread(group, "rate", 0),
            f"{median(group, 'wal_bytes'):.0f}", f"{median(group, 'wal_records'):.1f}",
            f"{median(group, 'wal_fpi'):.0f}", percent(median(group, "hot")), visits(group),
            latency(group, "claim"), latency(group, "complete"),
            sum(r["double"] for r in group) or ""])
    return table(["who", "batch", "clients", "CPU us/cycle", "ours / it", "background", "vacuum", "cycles/s",
                  "WAL bytes", "records", "FPI bytes", "HOT", "visits", "claim ms p50 / p99", "report ms p50 / p99",
                  "claimed twice"], rows)


def runs(results):
    without = {key: group for key, group in groups(
        [r for r in results["rounds"] if r["rival"] == "ours-report"], "batch").items()}
    return table(["who", "batch", "CPU us/cycle", "to none kept", "cycles/s", "WAL bytes", "report ms p50 / p99"], [
        [RIVALS[rival].title, batch, spread(group, "cpu"), ratio(group, without[(batch,)]), spread(group, "rate", 0),
         f"{median(group, 'wal_bytes'):.0f}", latency(group, "complete")]
        for (batch, rival), group in groups(results["rounds"], "batch", "rival").items()])


def sizes(results):
    rows = []
    for (rival, batch, size), group in groups(results["rounds"], "rival", "batch", "rows").items():
        least = [r for r in results["rounds"] if (r["rival"], r["batch"]) == (rival, batch)]
        least = [r for r in least if r["rows"] == min(r["rows"] for r in least)]
        rows.append([RIVALS[rival].title, batch, f"{size:,}", spread(group, "cpu"), spread(group, "rate", 0),
                     spread(group, "claim_p50", 3, 1000),
                     f"{median(group, 'claim_p50') / median(least, 'claim_p50'):.2f}",
                     f"{1000 * median(group, 'claim_p99'):.2f}", f"{1000 * median(group, 'complete_p50'):.2f}"])
    return table(["who", "batch", "rows", "CPU us/cycle", "cycles/s", "claim ms p50", "to the smallest",
                  "claim ms p99", "report ms p50"], rows)


def checkpoint(results):
    return table(["who", "WAL bytes", "FPI bytes", "records", "CPU us/cycle"], [
        [RIVALS[rival].title, spread(group, "wal_bytes", 0), spread(group, "wal_fpi", 0),
         f"{median(group, 'wal_records'):.1f}", spread(group, "cpu")]
        for (rival,), group in groups(results["rounds"], "rival").items()])


def buffers(results):
    return table(["who", "batch", "buffers per row claimed"], [
        [RIVALS[rival].title, batch, spread(group, "buffers")]
        for (batch, rival), group in groups(results["rounds"], "batch", "rival").items()])


def growth(results):
    rows = []
    for (rival,), group in groups(results["sizes"], "rival").items():
        rows.append([RIVALS[rival].title] + [
            f"{r['heap'] / r['rows']:.0f} + {r['indexes'] / r['rows']:.0f}" for r in group])
    goals = [r["cycles"] for r in next(iter(groups(results["sizes"], "rival").values()))]
    return table(["who, bytes per row: heap + indexes"] + [f"{goal} cycles" for goal in goals], rows)


def idle(results):
    return table(["who", "rows", "CPU us/poll", "ms p50", "ms p99"], [
        [RIVALS[rival].title, f"{size:,}", spread(group, "cpu"), f"{1000 * median(group, 'claim_p50'):.3f}",
         f"{1000 * median(group, 'claim_p99'):.3f}"]
        for (size, rival), group in groups(results["rounds"], "rows", "rival").items()])


def user(results):
    plain = [r for r in results["rounds"] if r["rival"] == "ours-key"]
    return table(["what", "CPU us", "ms p50", "to the plain lookup"], [
        [RIVALS[rival].title, spread(group, "cpu"), f"{1000 * median(group, 'claim_p50'):.3f}",
         f"{median(group, 'cpu') / median(plain, 'cpu'):.2f}"]
        for (rival,), group in groups(results["rounds"], "rival").items()])


def held_facts(results, rival, clients=1):
    """Rates before and under the snapshot, and the slowest claims."""
    def those(facts):
        return [r for r in facts if (r["rival"], r["clients"]) == (rival, clients)]

    of = those(results["rounds"])
    clean = [r for r in of if r["phase"] == "clean"]
    late = [r for r in of if r["phase"] == "held"]
    return {
        "made": late[-1]["made"], "clean": median(clean, "rate"), "late": median(late[-5:], "rate"),
        "p99": median(clean, "claim_p99"), "slowest": max(r["claim_max"] for r in late),
        "first": max((r["seconds"] for r in those(results["firsts"])), default=None),
        "until": max((r["until"] for r in those(results["firsts"])), default=None),
        "expired": next((r["seconds"] for r in those(results["expired"])), None),
    }


def held(results):
    rows = []
    for rival, clients in groups(results["rounds"], "rival", "clients"):
        f = held_facts(results, rival, clients)
        rows.append([RIVALS[rival].title, clients, f"{f['made']:,}", f"{f['clean']:.0f}", f"{f['late']:.0f}",
                     f"{f['late'] / f['clean']:.2f}", f"{1000 * f['p99']:.1f}", f"{1000 * f['slowest']:.1f}",
                     *("-" if f["first"] is None else f"{1000 * f[x]:.1f}" for x in ("first", "until")),
                     "-" if f["expired"] is None else f"{f['expired']:.1f}"])
    return table(["who", "clients", "cycles under the snapshot", "cycles/s before", "in the end", "ratio", "claim ms p99 before",
                  "slowest claim", "slowest of a new session", "its first 100 cycles took", "expired lease found after s"], rows)


def router(results):
    rows = []
    for (batch, rival), group in groups(results["rounds"], "batch", "rival").items():
        whole = [{**r, "cpu": r["cpu"] + r["shards"]} for r in group]
        straight = [r for r in results["rounds"] if r["batch"] == batch
                    and r["rival"] == ("ours-report" if rival.endswith("-report") else "ours")]
        rows.append([
            RIVALS[rival].title, batch, spread(group, "cpu"), spread(group, "shards"),
            f"{median(whole, 'cpu') / median(straight, 'cpu'):.2f}", spread(group, "rate", 0),
            f"{median(group, 'rate') / median(straight, 'rate'):.2f}",
            f"{median(group, 'background'):.1f}", f"{median(group, 'wal_bytes'):.0f}",
            latency(group, "claim"), latency(group, "complete")])
    return table(["who", "batch", "CPU us/cycle, session", "of shards", "both / direct", "cycles/s", "to direct",
                  "background", "WAL bytes", "claim ms p50 / p99", "report ms p50 / p99"], rows)


def crowd(results):
    """Costs to those of rivals with as many sessions, and to one's own with the fewest."""
    rounds = results["rounds"]
    by = groups(rounds, "batch", "clients", "rival")
    fewest = min((r["clients"] for r in rounds), default=1)
    return table(
        ["who", "batch", "clients", "CPU us/cycle", "to f", "to c", f"to {fewest} client{'s'[:fewest - 1]}", "cycles/s",
         "visits", "held, gone", "rows per claim", "claim ms p50 / p99"], [
            [RIVALS[rival].title, batch, clients, spread(group, "cpu"),
             *(ratio(group, by.get(key)) for key in (
                 (batch, clients, "f"), (batch, clients, "c"), (batch, fewest, rival))),
             spread(group, "rate", 0), visits(group), passed(group),
             f"{sum(r['cycles'] for r in group) / sum(r['claims'] for r in group):.1f}", latency(group, "claim")]
            for (batch, clients, rival), group in by.items()])


def paced(results):
    return "\n\n".join(f"{title}:\n\n" + crowd({"rounds": [r for r in results["rounds"] if r["backlog"] == backlog]})
                       for backlog, title in ((True, "With a backlog"), (False, "Without one")))


def sources(results):
    def to_one(rounds, head, cells):
        one = {key[0]: group for key, group in groups(
            [r for r in rounds if r["rival"] == "ours-report"], "clients").items()}
        return table(["who", "clients", *head, "to one source"], [
            [RIVALS[rival].title, clients, *cells(group), ratio(group, one.get(clients))]
            for (clients, rival), group in groups(rounds, "clients", "rival").items()])

    return "\n\n".join([
        to_one(results["rounds"], ["CPU us/cycle", "visits", "claim ms p50 / p99"],
               lambda group: [spread(group, "cpu"), visits(group), latency(group, "claim")]),
        to_one(results["idle"], ["CPU us/poll", "poll ms p50 / p99"],
               lambda group: [spread(group, "cpu"), latency(group, "claim")])])


def latencies(results):
    return "\n\n".join([
        table(["who", "clients", "claim ms p50", "p99", "max"], [
            [RIVALS[rival].title, clients, *(spread(group, f"claim_{what}", 2, 1000) for what in ("p50", "p99", "max"))]
            for (clients, rival), group in groups(results["rounds"], "clients", "rival").items()]),
        table(["who", "clients", "rows that fall due", "apart by us", "the last is claimed after s"], [
            [RIVALS[rival].title, clients, f"{rows:,}", step, spread(group, "seconds", 2)]
            for (step, clients, rows, rival), group in
            groups(results["together"], "step", "clients", "rows", "rival").items()]),
        table(["what", "found after ms, median", "max"], [
            [what, f"{1000 * median(group, 'seconds'):.0f}", f"{1000 * max(r['seconds'] for r in group):.0f}"]
            for (what,), group in groups(results["found"], "what").items()])])


PARTS = {"cycles": cycles, "runs": runs, "sync": cycles, "clients": cycles, "sizes": sizes, "checkpoint": checkpoint,
         "buffers": buffers, "growth": growth, "idle": idle, "user": user, "held": held, "router": router,
         "crowd": crowd, "late": crowd, "paced": paced, "sources": sources, "latency": latencies}


# ------------------------------------------------------------------- targets

def targets(all_results):
    """What was to be reached, and what was."""
    rows = []

    def row(what, target, value, digits=2):
        if value is not None and not math.isnan(value):
            rows.append([what, f"{target}", f"{value:.{digits}f}",
                         "yes" if (value >= target if what.startswith("held snapshot: rate") else value <= target)
                         else "no"])

    results = all_results.get("cycles", {}).get("rounds", [])
    for rival, at_100, at_1 in (("b", .5, .5), ("c", 1, .9), ("d", .1, .2), ("e", .15, .2), ("f", 1.3, 1.5)):
        for batch, target in ((100, at_100), (1, at_1)):
            its = [r for r in results if (r["rival"], r["batch"]) == (rival, batch)]
            if its:
                row(f"CPU per cycle to {RIVALS[rival].title}, batch {batch}", target,
                    median(ours(results, batch=batch), "cpu") / median(its, "cpu"))
    its = [r for r in results if (r["rival"], r["batch"]) == ("b", 100)]
    if its:
        row("WAL bytes per cycle to b, batch 100", .85,
            median(ours(results, batch=100), "wal_bytes") / median(its, "wal_bytes"))
    for batch in (100, 1):
        its = groups([r for r in all_results.get("sizes", {}).get("rounds", [])
                      if (r["rival"], r["batch"]) == ("ours", batch)], "rows")
        if its:
            least, most = min(its), max(its)
            row(f"claim p50 at {most[0]:,} rows to {least[0]:,}, batch {batch}", 1.2,
                median(its[most], "claim_p50") / median(its[least], "claim_p50"))
    for clients in (1, 8) if "held" in all_results else ():
        f, by = held_facts(all_results["held"], "ours", clients), f", {clients} client{'s'[:clients - 1]}"
        row(f"held snapshot: rate after {f['made']:,} cycles to the clean one{by}", .9, f["late"] / f["clean"])
        row(f"slowest claim under it to the clean p99{by}", 10, f["slowest"] / f["p99"], 1)
        row(f"first claim of a session under it to the clean p99{by}", 10, f["first"] / f["p99"], 1)
    its = groups([r for r in all_results.get("idle", {}).get("rounds", []) if r["rival"] == "ours"], "rows")
    for (size,), group in its.items():
        row(f"idle poll at {size:,} rows, us of CPU", 25, median(group, "cpu"), 0)
    its = groups(all_results.get("user", {}).get("rounds", []), "rival")
    if its:
        row("CPU of my_syncs to a lookup by primary key", 1.2,
            median(its[("ours-view",)], "cpu") / median(its[("ours-key",)], "cpu"))
    results = all_results.get("crowd", {}).get("rounds", [])
    for clients, to_floor in ((1, 1.15), (8, 1.3), (32, 1.5)):
        mine = ours(results, batch=10, clients=clients)
        for rival, target in (("f", to_floor), ("c", 1)):
            its = [r for r in results if (r["rival"], r["batch"], r["clients"]) == (rival, 10, clients)]
            if mine and its:
                row(f"CPU per cycle to {RIVALS[rival].title}, batch 10, {clients} client{'s'[:clients - 1]}", target,
                    median(mine, "cpu") / median(its, "cpu"))
    for backlog, title in ((True, "with a backlog"), (False, "without one")):
        its = groups([r for r in all_results.get("paced", {}).get("rounds", [])
                      if (r["rival"], r["backlog"]) == ("ours-report", backlog)], "clients")
        if its:
            least, most = min(its), max(its)
            row(f"CPU per cycle at the same load {title}, {most[0]} clients to {least[0]}", 1.5,
                median(its[most], "cpu") / median(its[least], "cpu"))
    its = [r for r in all_results.get("sources", {}).get("idle", []) if r["rival"] == "sources"]
    if its:
        row(f"idle poll of {RIVALS['sources'].number} sources, us of CPU", 1000, median(its, "cpu"), 0)
    return table(["what", "target", "reached", "met"], rows)


# --------------------------------------------------------------------- plots

def ticks(low, high, log):
    if log:
        return [10 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    step = 10 ** math.floor(math.log10(high))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if high / s <= 7)
    return [step * i for i in range(math.ceil(high / step) + 1)]


def plot(path, title, x_title, y_title, lines, log_x=False, log_y=False):
    """An SVG with a line for each rival: {name: [(x, y), ...]}."""
    width, height, left, right, top, bottom = 760, 400, 70, 190, 40, 50
    points = [p for line in lines.values() for p in line]
    xs = ticks(min(p[0] for p in points), max(p[0] for p in points), log_x)
    ys = ticks(min(p[1] for p in points), max(p[1] for p in points), log_y)

    def place(value, marks, log, start, length):
        low, high = (math.log10(marks[0]), math.log10(marks[-1])) if log else (marks[0], marks[-1])
        return start + length * ((math.log10(value) if log else value) - low) / (high - low or 1)

    def x_of(value):
        return place(value, xs, log_x, left, width - left - right)

    def y_of(value):
        return place(value, ys, log_y, height - bottom, top + bottom - height)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'font-family="sans-serif" font-size="12" fill="{INK}">',
           f'<text x="{left}" y="20" font-size="15">{title}</text>',
           f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">{x_title}</text>',
           f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" '
           f'text-anchor="middle">{y_title}</text>']
    for y in ys:
        svg.append(f'<path d="M{left} {y_of(y):.1f}H{width - right}" stroke="{INK}" stroke-opacity=".3"/>'
                   f'<text x="{left - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:,.10g}</text>')
    for x in xs:
        svg.append(f'<text x="{x_of(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:,.10g}</text>')
    taken = []
    for name, line in sorted(lines.items(), key=lambda item: item[1][-1][1]):
        colour = COLOURS[name]
        svg.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{3 if name == "ours" else 2}" points="'
                   + " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line) + '"/>')
        svg += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in line if len(line) < 20]
        at = y_of(line[-1][1]) + 4      # or above, for there is an axis below
        while any(abs(at - other) < 14 for other in taken):
            at -= 2
        taken.append(at)
        svg.append(f'<text x="{width - right + 8}" y="{at:.1f}" fill="{colour}">{RIVALS[name].title}</text>')
    path.write_text("\n".join(svg + ["</svg>"]) + "\n", encoding="utf-8")


def plots(all_results, where):
    """Draws what there is; returns (file, title)."""
    drawn = []

    def draw(file, title, *args, **options):
        plot(where / file, title, *args, **options)
        drawn.append((file, title))

    def lines(results, x, y, **only):
        """Ours by report_syncs() where that was measured."""
        batched = {r[x] for r in results if r["rival"] == "ours-report"}
        shown = [{**r, "rival": "ours"} if r["rival"] == "ours-report" else r for r in results
                 if r["rival"] != "b-calls" and not (r["rival"] == "ours" and r[x] in batched)
                 and all(r[k] == v for k, v in only.items())]
        return {rival: sorted((key[0], median(group, y)) for key, group in groups(of, x).items())
                for (rival,), of in groups(shown, "rival").items()}

    if "cycles" in all_results:
        draw("batches.svg", "Server CPU per cycle", "batch", "microseconds",
             lines(all_results["cycles"]["rounds"], "batch", "cpu"), log_x=True, log_y=True)
    if "clients" in all_results:
        draw("clients.svg", "Cycles per second, batches of 100", "clients", "cycles/s",
             lines(all_results["clients"]["rounds"], "clients", "rate"))
    for part, title, y, y_title, only in (
            ("crowd", "Server CPU per cycle at a backlog, batches of 10", "cpu", "microseconds", {"batch": 10}),
            ("late", "Server CPU per cycle at an old backlog, new sessions, batches of 10", "cpu", "microseconds", {}),
            ("paced", "Server CPU per cycle at the same load, with a backlog", "cpu", "microseconds", {"backlog": True}),
            ("sources", "Server CPU per cycle in one source and in many, batches of 10", "cpu", "microseconds", {}),
            ("latency", "99th percentile of claims of 10 rows at a backlog", "claim_p99", "seconds", {})):
        its = lines(all_results.get(part, {}).get("rounds", []), "clients", y, **only)
        if its:
            draw(f"{part}.svg", title, "clients", y_title, its, log_x=True)
    if "sizes" in all_results:
        draw("sizes.svg", "Cycles per second against the size of the table, batches of 100", "rows", "cycles/s",
             lines(all_results["sizes"]["rounds"], "rows", "rate", batch=100), log_x=True)
    if "held" in all_results:
        draw("held.svg", "Cycles per second while a snapshot is held, batches of 100",
             "cycles since it was taken", "cycles/s",
             lines([r for r in all_results["held"]["rounds"] if r["phase"] == "held" and r["clients"] == 1], "made", "rate"))
    return drawn


# -------------------------------------------------------------------- report

TITLES = {
    "cycles": "Cost of a cycle", "runs": "Keeping runs", "sync": "With synchronous_commit = on", "clients": "Clients at the same time",
    "sizes": "Size of the table", "held": "Under a held snapshot", "checkpoint": "Right after a checkpoint",
    "buffers": "Buffers of a claim", "growth": "Size on disk", "idle": "Idle polls", "user": "A user's own rows",
    "router": "Through the router", "crowd": "Many sessions at a backlog", "late": "Sessions that come late",
    "paced": "The same load by few and by many", "sources": "Many sources", "latency": "How soon rows are claimed",
}


def write(directory):
    """RESULTS.md and plots, of the results that are there."""
    found = {name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
             for name in TITLES if (directory / f"{name}.json").exists()}
    out = ["# Results", "",
           "Written by `test/bench/run --report`.  [README.md](README.md) says what is measured, who the rivals are, "
           "and how to read this.", ""]
    abouts = {}
    for name, results in found.items():
        about = {**results["about"], "settings": {k: v for k, v in results["about"]["settings"].items()}}
        abouts.setdefault(json.dumps(about, sort_keys=True), []).append(name)
    for about, names in abouts.items():
        about = json.loads(about)
        queues = ", ".join(f"{k} {v}" for k, v in about["queues"].items())
        out += [f"- {', '.join(names)}: {about['date']}, `--size {about['size']}`, PostgreSQL {about['server']}, "
                f"{about['machine']}; {queues}; "
                + ", ".join(f"`{k} = {v}`" for k, v in about["settings"].items())]
    if found:
        out += ["", "## Targets", "", targets(found), ""]
    drawn = plots(found, directory.parent if directory == HERE / "results" else directory)
    out += [line for file, title in drawn for line in (f"![{title}]({file})", "")]
    for name, results in found.items():
        out += [f"## {TITLES[name]}", "", PARTS[name](results), ""]
    target = (directory.parent if directory == HERE / "results" else directory) / "RESULTS.md"
    pathlib.Path(target).write_text("\n".join(out), encoding="utf-8")
    print(f"wrote {target}")
