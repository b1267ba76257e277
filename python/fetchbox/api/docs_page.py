"""The API document as one HTML page: no script, no outside asset."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from typing import Any

from fetchbox.api.openapi import document

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: .875em/1.45 ui-monospace, monospace; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; } summary code { font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; } td, th { text-align: left; vertical-align: top; padding: .2rem .75rem
.2rem 0; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--line); border-radius: .375rem; }
"""


@cache
def page() -> bytes:
    """The page, made from the document once."""
    api = document()
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(api['info']['title'])} API</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(api['info']['title'])} API {escape(api['info']['version'])}</h1><p>{escape(api['info']['description'])}</p>",
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for tag in api["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>")
        for path, item in api["paths"].items():
            parts += [_operation(method, path, operation) for method, operation in item.items() if tag["name"] in operation["tags"]]
    parts.append("<h2>Bodies</h2>")
    for name, schema in api["components"]["schemas"].items():
        text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        parts.append(f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>')
    parts.append("</body></html>")
    return "".join(parts).encode()


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [_row(f"{parameter['name']} ({parameter['in']})", parameter["description"]) for parameter in operation["parameters"]]
    body = operation.get("requestBody")
    if body is not None:
        rows.append(_row("body", _links(body["content"])))
    answers = [_row(status, answer["description"], _links(answer.get("content", {}))) for status, answer in operation["responses"].items()]
    parameters = f"<table>{''.join(rows)}</table>" if rows else ""
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{parameters}<table>{''.join(answers)}</table></details>"
    )


def _row(name: str, *cells: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _links(content: dict[str, Any]) -> str:
    names = [media["schema"].get("$ref", "").rpartition("/")[2] for media in content.values()]
    return ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names if name)
