"""Parts of the product by themselves: pytest-benchmark for what Python calls, C programs where Python would hide the figure."""

from __future__ import annotations

from net.record import Plan, Record


def run(record: Record, plan: Plan) -> None:
    pass
