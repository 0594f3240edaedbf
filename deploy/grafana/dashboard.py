"""The dashboard, as Grafana's classic JSON (importable everywhere). Edit here, then run deploy/generate."""

# Whom a query asks: the job and instance chosen above, and for series of lanes the endpoint too.
PODGATE = 'job=~"$job", instance=~"$instance"'
LANE = PODGATE + ', endpoint=~"$endpoint"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What a lane refuses by, of all outcomes.
SHED = 'outcome=~"queue_full|out_of_reach|wait_expired|paused"'
RATE = "$__rate_interval"
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


def steps(*pairs):
    """Thresholds: a colour from a value on, the first from the bottom."""
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in pairs]}


def target(expr, legend, **more):
    return {"datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "range": True, **more}


def panel(kind, title, description, queries, unit, width, height, thresholds=None, **defaults):
    targets = [target(*query) if isinstance(query, tuple) else query for query in queries]
    for nth, one in enumerate(targets):
        one["refId"] = chr(ord("A") + nth)
    field = {"unit": unit, "color": {"mode": "palette-classic"}, **defaults}
    if thresholds:
        field["thresholds"] = thresholds
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": {},
        "gridPos": {"w": width, "h": height},
    }


def stat(title, description, expr, unit, thresholds, width=3, height=5, decimals=None):
    """One number, coloured by what it means."""
    defaults = {"color": {"mode": "thresholds"}, "min": 0}
    if decimals is not None:
        defaults["decimals"] = decimals
    made = panel("stat", title, description, [(expr, "")], unit, width, height, thresholds, **defaults)
    made["targets"][0].update(instant=True, range=False)
    made["options"] = {
        "colorMode": "background" if width > 3 else "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return made


def lines(title, description, *queries, unit="short", width=8, height=8, stacked=False, colours=None, **defaults):
    """Lines over time, or areas that add up."""
    made = panel("timeseries", title, description, queries, unit, width, height, min=0, **defaults)
    made["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in (colours or {}).items()
    ]
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def table(title, description, columns, by, height=8):
    """What stands now, a row for each lane or process: `columns` of (name, expression, unit)."""
    queries = [target(expr, "", format="table", instant=True, range=False) for _, expr, _ in columns]
    made = panel("table", title, description, queries, "short", 24, height)
    values = [f"Value #{query['refId']}" if len(columns) > 1 else "Value" for query in made["targets"]]
    made["fieldConfig"]["defaults"]["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}}
    made["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, _, unit in columns
    ]
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: nth for nth, name in enumerate([*by, *values])},
                "renameByName": {value: name for value, (name, _, _) in zip(values, columns)},
            },
        },
    ]
    made["options"] = {"showHeader": True, "cellHeight": "sm"}
    return made


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": 24, "h": 1}}


def quantiles(family, labels, *wanted):
    """Quantiles over every operation together."""
    rate = f"sum by (le) (rate({family}_bucket{{{labels}}}[{RATE}]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{q * 100:g}") for q in wanted]


def by_operation(q, family, labels):
    rate = f"sum by (le, operation) (rate({family}_bucket{{{labels}}}[{RATE}]))"
    return (f"histogram_quantile({q}, {rate})", "{{operation}}")


def lanes(series, labels=LANE):
    return f"sum by (group, endpoint) ({series}{{{labels}}})"


def ratio(part, whole):
    return f"{lanes(part)} / ({lanes(whole)} > 0)"


WHICH_LANE = "{{group}} {{endpoint}}"
TOP = [
    stat(
        "429s from Runpod",
        "The first promise: none, in the time shown. If there are any: the alert PodgateUpstreamThrottles says what to do.",
        f"sum(increase(podgate_upstream_throttled_total{{{LANE}}}[$__range]))",
        "short", steps((None, GREEN), (0.5, RED)), width=6, decimals=0,
    ),
    stat(
        "Budget unused while somebody waited",
        "The second promise: none, in the time shown. Seconds in which a request waited that could have gone.",
        f"sum(increase(podgate_idle_budget_seconds_total{{{LANE}}}[$__range]))",
        "s", steps((None, GREEN), (0.5, YELLOW), (5, RED)), width=6, decimals=1,
    ),
    stat(
        "Fullest window",
        "Used of the limit, in the lane that is nearest to it.",
        f"max({ratio('podgate_window_used', 'podgate_window_limit')})",
        "percentunit", steps((None, GREEN), (0.9, YELLOW)), decimals=0,
    ),
    stat(
        "Waiting now",
        "Requests in all queues.",
        f"sum(podgate_queue_depth{{{LANE}}})",
        "short", steps((None, GREEN), (1, BLUE)),
    ),
    stat(
        "Refused by podgate",
        "Of all requests, the share whose turn could not have come in time.",
        f"sum(rate(podgate_requests_total{{{LANE}, {SHED}}}[{RATE}])) / (sum(rate(podgate_requests_total{{{LANE}}}[{RATE}])) > 0) or vector(0)",
        "percentunit", steps((None, GREEN), (0.01, YELLOW), (0.1, RED)), decimals=1,
    ),
    stat(
        "podgates up",
        "Those that answer Prometheus. Together they must not be more than `replicas` says.",
        f"sum(up{{{PODGATE}}})",
        "short", steps((None, RED), (1, GREEN)),
    ),
]
PROMISES = [
    lines(
        "429s from Runpod, a second",
        "By what podgate takes for the cause. rate, concurrency: the account's limit is lower than configured. outside: somebody spends it past podgate. backlog: the endpoint's own queue is full.",
        (f"sum by (group, cause) (rate(podgate_upstream_throttled_total{{{LANE}}}[{RATE}]))", "{{group}} {{cause}}"),
        unit="reqps", width=12, height=6,
    ),
    lines(
        "Budget unused while somebody waited",
        "Of each second, how long a request waited that could have gone. Above zero podgate was kept from running, or is at fault.",
        (f"sum by (group) (rate(podgate_idle_budget_seconds_total{{{LANE}}}[{RATE}]))", "{{group}}"),
        unit="percentunit", width=12, height=6,
    ),
]
BUDGET = [
    lines(
        "Window used",
        "Requests counted in the window, of the documented limit. Near 100% while callers wait is what podgate is for.",
        (ratio("podgate_window_used", "podgate_window_limit"), WHICH_LANE),
        unit="percentunit", max=1,
    ),
    lines(
        "Permits in use",
        "Exchanges at Runpod now, of those allowed at once. Full while the window is not: calls take long.",
        (ratio("podgate_permits_in_use", "podgate_permits_limit"), WHICH_LANE),
        unit="percentunit", max=1,
    ),
    lines(
        "Limit that is left",
        "What refusals have taught, of the documented limit. 100% unless somebody else spends the account.",
        (ratio("podgate_window_effective_limit", "podgate_window_limit"), WHICH_LANE),
        unit="percentunit", max=1,
    ),
    table(
        "Lanes now",
        "Each lane: an endpoint and a group of operations that share one limit. A limit of 0: there is none.",
        [
            ("window used", lanes("podgate_window_used"), "short"),
            ("window limit", lanes("podgate_window_limit"), "short"),
            ("effective limit", lanes("podgate_window_effective_limit"), "short"),
            ("burst", lanes("podgate_burst_limit"), "short"),
            ("permits in use", lanes("podgate_permits_in_use"), "short"),
            ("permits", lanes("podgate_permits_limit"), "short"),
            ("waiting", lanes("podgate_queue_depth"), "short"),
            ("bytes held", lanes("podgate_queue_bytes"), "bytes"),
            ("oldest waits", f"max by (group, endpoint) (podgate_queue_oldest_seconds{{{LANE}}})", "s"),
        ],
        ["group", "endpoint"],
    ),
]
QUEUE = [
    lines(
        "Waiting",
        "Requests in the queue of each lane.",
        (lanes("podgate_queue_depth"), WHICH_LANE),
    ),
    lines(
        "Time until a turn",
        "How long requests waited that got their turn; most do not wait at all.",
        *quantiles("podgate_queue_wait_seconds", f'{PODGATE}, outcome="forwarded"', 0.5, 0.95, 0.99),
        unit="s",
    ),
    lines(
        "The longest wait now",
        "Of the request that waits longest in each lane; max_wait is the end of it.",
        (f"max by (group, endpoint) (podgate_queue_oldest_seconds{{{LANE}}})", WHICH_LANE),
        unit="s",
    ),
    lines(
        "Refused, by reason",
        "queue_full: too many wait. out_of_reach: its turn would come too late. wait_expired: it did not come in time after all. paused: Runpod has refused, and the lane waits.",
        (f"sum by (outcome) (rate(podgate_requests_total{{{LANE}, {SHED}}}[{RATE}]))", "{{outcome}}"),
        unit="reqps", stacked=True,
    ),
    lines(
        "Refused, by lane",
        "Whose turn could not have come in time, by operation and endpoint.",
        (f"sum by (operation, endpoint) (rate(podgate_requests_total{{{LANE}, {SHED}}}[{RATE}]))", "{{operation}} {{endpoint}}"),
        unit="reqps", stacked=True,
    ),
    lines(
        "Would be refused (shadow)",
        "What lanes in shadow mode have let pass that enforce would have refused.",
        (f"sum by (group, outcome) (rate(podgate_shadow_shed_total{{{LANE}}}[{RATE}]))", "{{group}} {{outcome}}"),
        unit="reqps", stacked=True,
    ),
]
REQUESTS = [
    lines(
        "Requests, by outcome",
        "How they ended. forwarded: Runpod answered, whatever its status.",
        (f"sum by (outcome) (rate(podgate_requests_total{{{LANE}}}[{RATE}])) > 0", "{{outcome}}"),
        unit="reqps", stacked=True, colours={"forwarded": GREEN},
    ),
    lines(
        "Requests, by operation",
        "What was asked for.",
        (f"sum by (operation) (rate(podgate_requests_total{{{LANE}}}[{RATE}])) > 0", "{{operation}}"),
        unit="reqps", stacked=True,
    ),
    lines(
        "Time in all, p95",
        "From a request's head to the last byte of its answer, by operation. runsync, status-sync and stream are held by Runpod on purpose.",
        by_operation(0.95, "podgate_request_duration_seconds", PODGATE),
        unit="s",
    ),
]
UPSTREAM = [
    lines(
        "Answers of Runpod",
        "By class of status. 429s are counted above.",
        (f"sum by (status) (rate(podgate_upstream_responses_total{{{LANE}}}[{RATE}]))", "{{status}}"),
        unit="reqps", stacked=True, colours={"2xx": GREEN, "4xx": YELLOW, "5xx": RED},
    ),
    lines(
        "Runpod's latency",
        "From the permit to the head of the answer, over all operations.",
        *quantiles("podgate_upstream_duration_seconds", PODGATE, 0.5, 0.95, 0.99),
        unit="s",
    ),
    lines(
        "Runpod's latency, p95",
        "The same by operation.",
        by_operation(0.95, "podgate_upstream_duration_seconds", PODGATE),
        unit="s",
    ),
    lines(
        "No answer from Runpod",
        "Requests that could not be sent (unreachable), whose answer broke off (broke) or came too late (timeout).",
        (f'sum by (outcome) (rate(podgate_requests_total{{{LANE}, outcome=~"upstream_.*"}}[{RATE}]))', "{{outcome}}"),
        unit="reqps", stacked=True, width=12, height=6,
    ),
    lines(
        "Lanes paused",
        "1 while a refusal pauses the lane. One short request then tries whether it may go on.",
        (f"max by (group, endpoint) (podgate_lane_paused{{{LANE}}})", WHICH_LANE),
        width=12, height=6,
    ),
]
ITSELF = [
    lines(
        "What podgate adds",
        "Its own share of a request's time: neither body, queue nor Runpod.",
        *quantiles("podgate_overhead_seconds", PODGATE, 0.5, 0.99),
        unit="s",
    ),
    lines(
        "CPU",
        "Cores in use, by process. Throttled by a limit, podgate is late for every turn it gives.",
        (f"rate(process_cpu_seconds_total{{{PODGATE}}}[{RATE}])", "{{instance}}"),
    ),
    lines(
        "Memory",
        "Resident, and of that the bodies held now (against buffers.total).",
        (f"process_resident_memory_bytes{{{PODGATE}}}", "{{instance}}"),
        (f"podgate_buffered_bytes{{{PODGATE}}}", "{{instance}} bodies"),
        unit="bytes",
    ),
    lines(
        "Connections of clients",
        "Open now, and newly accepted in a second. Many new ones: callers do not keep theirs alive.",
        (f"podgate_connections{{{PODGATE}}}", "{{instance}} open"),
        (f"rate(podgate_connections_total{{{PODGATE}}}[{RATE}])", "{{instance}} new a second"),
    ),
    lines(
        "Open files",
        "Of those the process may open.",
        (f"process_open_fds{{{PODGATE}}} / process_max_fds{{{PODGATE}}}", "{{instance}}"),
        unit="percentunit", max=1,
    ),
    lines(
        "Log lines lost, configurations read",
        "Lines of the access log that nobody read fast enough; configurations taken and refused, in an hour.",
        (f"rate(podgate_access_log_dropped_total{{{PODGATE}}}[{RATE}])", "{{instance}} lines lost a second"),
        (f"sum by (result) (increase(podgate_config_reload_total{{{PODGATE}}}[1h]))", "configurations {{result}}"),
    ),
    table(
        "Processes",
        "Which podgate runs where, and for how long.",
        [
            ("up for", f"max by (instance, version) ((time() - process_start_time_seconds{{{PODGATE}}}) * on (job, instance) group_left (version) podgate_build_info{{{PODGATE}}})", "dtdurations"),
        ],
        ["instance", "version"],
        height=5,
    ),
]
SECTIONS = [
    ("The two promises", PROMISES),
    ("Budget", BUDGET),
    ("Queue", QUEUE),
    ("Requests", REQUESTS),
    ("Runpod", UPSTREAM),
    ("podgate itself", ITSELF),
]


def placed():
    """Every panel at its place: from left to right, a new line where the width is used up."""
    panels = list(TOP)
    for title, section in SECTIONS:
        panels += [row(title), *section]
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > 24:
            x, y, tallest = 0, y + tallest, 0
        place.update(x=x, y=y)
        x, tallest = x + place["w"], max(tallest, place["h"])
        one["id"] = number
    return panels


def chosen(name, label, query, **more):
    """A variable with the values a label has. "All" means those of podgate: `up` and `process_*` are everybody's."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
        "options": [],
        **more,
    }


def note(name, colour, expr, title):
    """A mark at the time axis."""
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": colour,
        "target": target(expr, "", refId="Anno", interval="1m"),
        "titleFormat": title,
    }


def dashboard():
    return {
        "uid": "podgate",
        "title": "podgate",
        "description": "A gateway that keeps a team's traffic inside the limits of Runpod's API, and uses them fully.",
        "tags": ["podgate"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "links": [],
        "annotations": {
            "list": [
                note("started", BLUE, f"changes(process_start_time_seconds{{{PODGATE}}}[1m]) > 0", "{{instance}} started"),
                note("configuration", YELLOW, f"increase(podgate_config_reload_total{{{PODGATE}}}[1m]) > 0", "configuration {{result}}"),
            ]
        },
        "templating": {
            "list": [
                {
                    "type": "datasource",
                    "name": "datasource",
                    "label": "Prometheus",
                    "query": "prometheus",
                    "current": {"text": "default", "value": "default"},
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "refresh": 1,
                    "regex": "",
                    "skipUrlSync": False,
                    "options": [],
                },
                chosen("job", "job", "label_values(podgate_build_info, job)"),
                chosen("instance", "podgate", 'label_values(podgate_build_info{job=~"$job"}, instance)'),
                chosen("endpoint", "endpoint", 'label_values(podgate_window_limit{job=~"$job"}, endpoint)', allValue=".*"),
            ]
        },
        "panels": placed(),
    }
