"""The status page: one HTML document with nothing from elsewhere, which renews itself every two seconds."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape

from worker.observability.status import MOSTLY_UNKNOWN, PartitionStatus, WorkerStatus

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --wait: #b35900; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --wait: #e3a03a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
.state { font-weight: 600; }
.live, .ready { color: var(--good); } .replaying, .waiting { color: var(--wait); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; overflow-wrap: anywhere; } .note { opacity: .7; }
"""

_SCRIPT = """
setInterval(async () => {
  const note = document.getElementById("note");
  try {
    const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
  } catch {
    note.textContent = "The worker does not answer.";
  }
}, 2000);
"""


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


SECURITY_POLICY = f"default-src 'none'; connect-src 'self'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}"
"""Content-Security-Policy under which the page works: its own style and script and nothing else."""


def render(status: WorkerStatus) -> bytes:
    """The page for a worker's state."""
    ready = ("ready", "ready") if status.ready else ("waiting", "restoring" if status.joined else "joining")
    partitions = "".join(map(_row, status.partitions))
    totals = "".join(
        f'<tr><th>{escape(name.replace("_", " "))}</th><td class="number">{count:,}</td></tr>'
        for name, count in status.totals.items()
    )
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in status.versions.items())
    unknown = ""
    if status.unknown_share is not None and status.unknown_share >= MOSTLY_UNKNOWN:
        unknown = (
            f'<p class="state waiting">{status.unknown_share:.0%} of the latest events are unknown to the checkpoint: '
            "their scores mean little. Was it trained on logs of this kind?</p>\n"
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(status.application_id)} - logmamba</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(status.application_id)} <span class="state {ready[0]}">{ready[1]}</span></h1>
<p>Worker <b>{escape(status.instance)}</b>, running since {escape(status.started_at)}. {versions}</p>
{unknown}<h2>Partitions</h2>
<table>
<tr><th>topic</th><th class="number">partition</th><th>state</th><th class="number">position</th>
<th class="number">lag</th><th class="number">open sessions</th></tr>
{partitions or '<tr><td colspan="6">none at the moment</td></tr>'}
</table>
<h2>Since the start</h2>
<table>{totals}</table>
<h2>Model</h2>
<p>checkpoint <code>{escape(status.checkpoint)}</code><br>
vocabulary <code>{escape(status.vocabulary)}</code></p>
<p class="note" id="note">Renewed every two seconds. See also <a href="/status">/status</a>,
<a href="/metrics">/metrics</a>, <a href="/healthz">/healthz</a> and <a href="/readyz">/readyz</a>.</p>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def _row(each: PartitionStatus) -> str:
    lag = "-" if each.lag is None else f"{each.lag:,}"
    return (
        f'<tr><td>{escape(each.topic)}</td><td class="number">{each.partition}</td>'
        f'<td class="state {each.state}">{each.state}</td><td class="number">{each.position:,}</td>'
        f'<td class="number">{lag}</td><td class="number">{each.open_sessions:,}</td></tr>\n'
    )
